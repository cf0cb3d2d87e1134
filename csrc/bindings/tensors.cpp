// SPDX-License-Identifier: Apache-2.0
#include <new>
#include <string>

#include "bindings/bindings.h"

namespace fastkd {

void reject(const std::string& what) { throw std::invalid_argument("fastkd native call: " + what); }

namespace {

int64_t as_int(PyObject* object) {
  const long long value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return static_cast<int64_t>(value);
}

int read_sizes(PyObject* tuple, int64_t* out) {
  if (!PyTuple_Check(tuple)) reject("sizes and strides must be tuples");
  const Py_ssize_t rank = PyTuple_GET_SIZE(tuple);
  if (rank > kMaxRank) reject("a tensor has more than 8 dimensions");
  for (Py_ssize_t i = 0; i < rank; ++i) out[i] = as_int(PyTuple_GET_ITEM(tuple, i));
  return static_cast<int>(rank);
}

}  // namespace

TensorRef read_tensor(const py::object& object) {
  TensorRef tensor;
  if (object.is_none()) return tensor;
  PyObject* tuple = object.ptr();
  if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 4) {
    reject("expected (address, dtype, sizes, strides)");
  }
  tensor.data = reinterpret_cast<void*>(as_int(PyTuple_GET_ITEM(tuple, 0)));
  const int64_t dtype = as_int(PyTuple_GET_ITEM(tuple, 1));
  if (dtype < 0 || dtype > 2) reject("unknown dtype code " + std::to_string(dtype));
  tensor.dtype = static_cast<Dtype>(dtype);
  tensor.rank = read_sizes(PyTuple_GET_ITEM(tuple, 2), tensor.sizes);
  if (read_sizes(PyTuple_GET_ITEM(tuple, 3), tensor.strides) != tensor.rank) {
    reject("sizes and strides differ in length");
  }
  if (tensor.data == nullptr && tensor.elements() != 0) {
    throw std::runtime_error(
        "fastkd: a tensor has no storage (was it freed by resize_(0) or sharding?)");
  }
  return tensor;
}

bool settle(const Outcome& outcome) {
  switch (outcome.status) {
    case Status::kOk:
      return true;
    case Status::kUnsupportedLayout:
      return false;
    case Status::kTargetOutOfRange:  // fastkd/ops/_row_kernel.py words both
      throw py::index_error(std::to_string(outcome.row));
    case Status::kNamedClasses:
      throw py::key_error(std::to_string(outcome.row));
    case Status::kOutOfMemory:
      throw std::bad_alloc();
    case Status::kThreadPoolFailed:
      throw std::runtime_error("fastkd: torch's thread pool reported a failure");
    case Status::kTooLarge:
      throw std::runtime_error(std::string("fastkd: CUDA has no room for ") + outcome.kernel +
                               ": " + outcome.reason +
                               ". fastkd.reference has the same losses in plain PyTorch");
    case Status::kLaunchFailed:
      throw std::runtime_error(std::string("fastkd: CUDA refused ") + outcome.kernel + ": " +
                               outcome.reason +
                               ". An earlier CUDA call of the program may have failed: "
                               "CUDA_LAUNCH_BLOCKING=1 shows which. fastkd.reference has the same "
                               "losses in plain PyTorch");
  }
  return false;
}

}  // namespace fastkd
