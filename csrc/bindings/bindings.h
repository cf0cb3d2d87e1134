// SPDX-License-Identifier: Apache-2.0
// From Python's objects to Args, and from an Outcome to an exception; the same for every backend.
// All of csrc/bindings is one translation unit, module.cpp: pybind11's header takes most of the
// time to compile it.
//
// A tensor arrives as the tuple (address, dtype code, sizes, strides) that fastkd/_native.py makes.
// The gate in fastkd/_front.py has seen to types, devices and dispatch; what is checked here again
// is what would otherwise read or write out of bounds.
#pragma once

#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>
#include <string>

#include "core/logit_layout.h"
#include "kernels.h"

namespace fastkd {

namespace py = pybind11;

[[noreturn]] inline void reject(const std::string& what) {
  throw std::invalid_argument("fastkd native call: " + what);
}

inline int64_t as_int(PyObject* object) {
  const long long value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return static_cast<int64_t>(value);
}

inline int read_sizes(PyObject* tuple, int64_t* out) {
  if (!PyTuple_Check(tuple)) reject("sizes and strides must be tuples");
  const Py_ssize_t rank = PyTuple_GET_SIZE(tuple);
  if (rank > kMaxRank) reject("a tensor has more than 8 dimensions");
  for (Py_ssize_t i = 0; i < rank; ++i) out[i] = as_int(PyTuple_GET_ITEM(tuple, i));
  return static_cast<int>(rank);
}

// None gives data == nullptr.
inline TensorRef read_tensor(const py::object& object) {
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

// Whether the kernel took the layout; throws for every other failure.
inline bool settle(const Outcome& outcome) {
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
    case Status::kNoRoomForClusters:
    case Status::kLaunchFailed:
      throw std::runtime_error(std::string("fastkd: CUDA refused ") + outcome.kernel + ": " +
                               outcome.reason +
                               ". An earlier CUDA call of the program may have failed: "
                               "CUDA_LAUNCH_BLOCKING=1 shows which. fastkd.reference has the same "
                               "losses in plain PyTorch");
  }
  return false;
}

// Runs a kernel without the interpreter's lock.
template <class Kernel>
bool run(Kernel&& kernel) {
  Outcome outcome;
  {
    const py::gil_scoped_release release;
    outcome = kernel();
  }
  return settle(outcome);
}

// A code of an enumeration with `count` values.
template <class Enum>
Enum checked_code(int code, int count, const char* what) {
  if (code < 0 || code >= count) reject(std::string("unknown ") + what + " code");
  return static_cast<Enum>(code);
}

template <class T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// Storage that a kernel will read or write.
template <class T>
T* required(int64_t address, const char* what) {
  if (address == 0) reject(std::string("no ") + what);
  return pointer<T>(address);
}

}  // namespace fastkd
