// SPDX-License-Identifier: Apache-2.0
// The Python module of one backend: described tensors in, kernels called, errors raised.
//
// A tensor arrives as the tuple (address, dtype code, sizes, strides) that fastkd/_native.py makes.
// The gate in fastkd/_front.py has seen to types, devices and dispatch; what is checked here again
// is what would otherwise read or write out of bounds.
#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>
#include <string>

#include "backends/backend.h"
#include "core/logit_layout.h"
#include "kernels.h"

namespace fastkd {
namespace {

[[noreturn]] void reject(const std::string& what) {
  throw std::invalid_argument("fastkd native call: " + what);
}

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

// None gives data == nullptr.
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

void check_same_rows(const TensorRef& a, const TensorRef& b, int dim, bool same_classes) {
  bool same = a.rank == b.rank;
  for (int i = 0; same && i < a.rank; ++i) {
    same = a.sizes[i] == b.sizes[i] || (i == dim && !same_classes);
  }
  if (!same) reject("shapes differ");
}

// Whether the kernel took the layout.
bool settle(const Outcome& outcome) {
  switch (outcome.status) {
    case Status::kOk:
      return true;
    case Status::kUnsupportedLayout:
      return false;
    case Status::kTargetOutOfRange:
      throw py::index_error(std::to_string(outcome.row));  // fastkd/_native.py words it
    case Status::kOutOfMemory:
      throw std::bad_alloc();
    case Status::kThreadPoolFailed:
      throw std::runtime_error("fastkd: torch's thread pool reported a failure");
    case Status::kLaunchFailed:
      throw std::runtime_error(std::string("fastkd: CUDA refused ") + outcome.kernel + ": " +
                               outcome.reason +
                               ". An earlier CUDA call of the program may have failed: "
                               "CUDA_LAUNCH_BLOCKING=1 shows which. fastkd.reference has the same "
                               "losses in plain PyTorch");
  }
  return false;
}

// Whether the kernels read these strides in place; otherwise the caller copies to contiguous rows.
LogitLayout layout_of(const TensorRef& student, const TensorRef& teacher, const TensorRef& grad,
                      bool has_grad, int dim) {
  const TensorRef* tensors[3] = {&student, &teacher, &grad};
  return LogitLayout(tensors, has_grad ? 3 : 2, dim);
}

bool kd_loss_call(const KdLossOptions& options, const RowOptions& row_options, int64_t dim,
                  int64_t batch_size, double num_items, int64_t num_items_on_device,
                  const py::object& student_logits, const py::object& teacher_logits,
                  int64_t target, int64_t sample_weight, int64_t loss, int64_t unscale,
                  const py::object& grad_student, int64_t workspace, int device, int64_t stream) {
  const TensorRef student = read_tensor(student_logits);
  const TensorRef teacher = read_tensor(teacher_logits);
  const TensorRef grad = read_tensor(grad_student);
  const bool has_grad = !grad_student.is_none();
  if (dim < 0 || dim >= student.rank) reject("dim is out of range");
  check_same_rows(student, teacher, static_cast<int>(dim), false);
  if (has_grad) {
    check_same_rows(student, grad, static_cast<int>(dim), true);
    if (grad.dtype != student.dtype) reject("the gradient must have the student's dtype");
  }
  if (student.sizes[dim] < 1 || teacher.sizes[dim] < 1) reject("no classes");
  if (loss == 0 && student.elements() != 0) reject("the loss has no storage");
  const LogitLayout layout = layout_of(student, teacher, grad, has_grad, static_cast<int>(dim));
  if (!layout.supported()) return false;

  LogitArgs args;
  args.outer = layout.outer();
  args.inner = layout.inner();
  args.student = layout.view(student, 0);
  args.teacher = layout.view(teacher, 1);
  if (has_grad) args.grad = layout.view(grad, 2);
  args.target = reinterpret_cast<const int64_t*>(target);
  args.sample_weight = reinterpret_cast<const float*>(sample_weight);
  args.loss = reinterpret_cast<float*>(loss);
  args.unscale = reinterpret_cast<float*>(unscale);
  args.workspace = reinterpret_cast<void*>(workspace);
  args.queue = {device, reinterpret_cast<void*>(stream)};
  if (workspace == 0 && workspace_bytes(args.rows()) != 0) reject("no workspace");
  RowOptions rows = row_options;
  rows.num_items = num_items;
  rows.num_items_on_device = reinterpret_cast<const double*>(num_items_on_device);
  rows.batch_size = batch_size;
  Outcome outcome;
  {
    const py::gil_scoped_release release;
    outcome = kd_loss(args, rows, options);
  }
  return settle(outcome);
}

bool scale_gradient_call(int64_t dim, const py::object& grad_object, const py::object& out_object,
                         int64_t grad_loss, bool per_row, int64_t unscale, int device,
                         int64_t stream) {
  const TensorRef grad = read_tensor(grad_object);
  const TensorRef out = read_tensor(out_object);
  if (dim < 0 || dim >= grad.rank) reject("dim is out of range");
  check_same_rows(grad, out, static_cast<int>(dim), true);
  if (grad.dtype != out.dtype) reject("dtypes differ");
  const LogitLayout layout = layout_of(grad, out, out, false, static_cast<int>(dim));
  if (!layout.supported()) return false;
  ScaleArgs args;
  args.outer = layout.outer();
  args.inner = layout.inner();
  args.grad = layout.view(grad, 0);
  args.out = layout.view(out, 1);
  args.grad_loss = reinterpret_cast<const float*>(grad_loss);
  args.per_row = per_row;
  args.unscale = reinterpret_cast<const float*>(unscale);
  args.queue = {device, reinterpret_cast<void*>(stream)};
  Outcome outcome;
  {
    const py::gil_scoped_release release;
    outcome = scale_gradient(args);
  }
  return settle(outcome);
}

}  // namespace

PYBIND11_MODULE(FASTKD_MODULE, m) {
  // Types are module_local: several builds may be loaded side by side.
  m.doc() = "Kernels of one fastkd backend; call them through fastkd.";
  py::class_<KdLossOptions>(m, "KdLossOptions", py::module_local())
      .def(py::init(
               [](float temperature, float soft_weight, float hard_weight, float label_smoothing) {
                 return KdLossOptions{temperature, soft_weight, hard_weight, label_smoothing};
               }),
           py::arg("temperature"), py::arg("soft_weight"), py::arg("hard_weight"),
           py::arg("label_smoothing"));
  py::class_<RowOptions>(m, "RowOptions", py::module_local())
      .def(py::init([](int reduction, int64_t ignore_index) {
             if (reduction < 0 || reduction > 3) reject("unknown reduction code");
             RowOptions rows;
             rows.reduction = static_cast<Reduction>(reduction);
             rows.ignore_index = ignore_index;
             return rows;
           }),
           py::arg("reduction"), py::arg("ignore_index"));
  m.def("kd_loss", &kd_loss_call);
  m.def("scale_gradient", &scale_gradient_call);
  m.def("workspace_bytes", &workspace_bytes);
  bind_backend(m);
}

}  // namespace fastkd
