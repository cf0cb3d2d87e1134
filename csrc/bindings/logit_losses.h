// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "bindings/bindings.h"

namespace fastkd {

inline void check_same_rows(const TensorRef& a, const TensorRef& b, int dim, bool same_classes) {
  bool same = a.rank == b.rank;
  for (int i = 0; same && i < a.rank; ++i) {
    same = a.sizes[i] == b.sizes[i] || (i == dim && !same_classes);
  }
  if (!same) reject("shapes differ");
}

// Whether the kernels read these strides in place; otherwise the caller copies to contiguous rows.
inline LogitLayout layout_of(const TensorRef& student, const TensorRef& teacher,
                             const TensorRef& grad, bool has_grad, int dim) {
  const TensorRef* tensors[3] = {&student, &teacher, &grad};
  return LogitLayout(tensors, has_grad ? 3 : 2, dim);
}

// What a call is given besides logits.
inline LogitArgs around_logits(const LogitLayout& layout, int64_t target, int64_t sample_weight,
                               int64_t loss, int64_t unscale, int64_t workspace, int device,
                               int64_t stream) {
  LogitArgs args;
  args.outer = layout.outer();
  args.inner = layout.inner();
  args.target = pointer<const int64_t>(target);
  args.sample_weight = pointer<const float>(sample_weight);
  args.loss = pointer<float>(loss);
  args.unscale = pointer<float>(unscale);
  args.workspace = pointer<void>(workspace);
  args.queue = {device, pointer<void>(stream)};
  if (workspace == 0 && workspace_bytes(args.rows()) != 0) reject("no workspace");
  return args;
}

inline RowOptions with_count(RowOptions rows, int64_t batch_size, double num_items,
                             int64_t num_items_on_device) {
  rows.num_items = num_items;
  rows.num_items_on_device = pointer<const double>(num_items_on_device);
  rows.batch_size = batch_size;
  return rows;
}

inline void check_gradient(const TensorRef& student, const TensorRef& grad, int dim) {
  check_same_rows(student, grad, dim, true);
  if (grad.dtype != student.dtype) reject("the gradient must have the student's dtype");
}

inline bool kd_loss_call(const KdLossOptions& options, const RowOptions& row_options, int64_t dim,
                         int64_t batch_size, double num_items, int64_t num_items_on_device,
                         const py::object& student_logits, const py::object& teacher_logits,
                         int64_t target, int64_t sample_weight, int64_t loss, int64_t unscale,
                         const py::object& grad_student, int64_t workspace, int device,
                         int64_t stream) {
  const TensorRef student = read_tensor(student_logits);
  const TensorRef teacher = read_tensor(teacher_logits);
  const TensorRef grad = read_tensor(grad_student);
  const bool has_grad = !grad_student.is_none();
  if (dim < 0 || dim >= student.rank) reject("dim is out of range");
  check_same_rows(student, teacher, static_cast<int>(dim), false);
  if (has_grad) check_gradient(student, grad, static_cast<int>(dim));
  if (options.divergence == Divergence::kDecoupled) {
    if (target == 0 && student.elements() != 0) reject("a decoupled loss needs a target");
    if (student.sizes[dim] != teacher.sizes[dim]) reject("the class counts differ");
  }
  if (student.sizes[dim] < 1 || teacher.sizes[dim] < 1) reject("no classes");
  if (loss == 0 && student.elements() != 0) reject("the loss has no storage");
  const LogitLayout layout = layout_of(student, teacher, grad, has_grad, static_cast<int>(dim));
  if (!layout.supported()) return false;

  LogitArgs args =
      around_logits(layout, target, sample_weight, loss, unscale, workspace, device, stream);
  args.student = layout.view(student, 0);
  args.teacher = layout.view(teacher, 1);
  if (has_grad) args.grad = layout.view(grad, 2);
  const RowOptions rows = with_count(row_options, batch_size, num_items, num_items_on_device);
  return run([&] { return kd_loss(args, rows, options); });
}

// values, indices: addresses of [rows, count], contiguous.
inline bool topk_kd_loss_call(const TopKKdLossOptions& options, const RowOptions& row_options,
                              int64_t dim, int64_t batch_size, double num_items,
                              int64_t num_items_on_device, const py::object& student_logits,
                              int64_t count, int64_t values, int64_t indices, int64_t target,
                              int64_t sample_weight, int64_t loss, int64_t unscale,
                              const py::object& grad_student, int64_t workspace, int device,
                              int64_t stream) {
  const TensorRef student = read_tensor(student_logits);
  const TensorRef grad = read_tensor(grad_student);
  const bool has_grad = !grad_student.is_none();
  if (dim < 0 || dim >= student.rank) reject("dim is out of range");
  if (has_grad) check_gradient(student, grad, static_cast<int>(dim));
  if (student.sizes[dim] < 1) reject("no classes");
  if (count < 1) reject("no named classes");
  const bool empty = student.elements() == 0;
  if (!empty && loss == 0) reject("the loss has no storage");
  if (!empty && (values == 0 || indices == 0)) reject("the teacher has no storage");
  const LogitLayout layout =
      layout_of(student, has_grad ? grad : student, grad, false, static_cast<int>(dim));
  if (!layout.supported()) return false;

  LogitArgs args =
      around_logits(layout, target, sample_weight, loss, unscale, workspace, device, stream);
  args.student = layout.view(student, 0);
  args.teacher = args.student;  // of which nothing is read
  if (has_grad) args.grad = layout.view(grad, 1);
  const NamedClasses named{pointer<const float>(values), pointer<const int64_t>(indices), count};
  const RowOptions rows = with_count(row_options, batch_size, num_items, num_items_on_device);
  return run([&] { return topk_kd_loss(args, named, rows, options); });
}

inline bool scale_gradient_call(int64_t dim, const py::object& grad_object,
                                const py::object& out_object, int64_t grad_loss, bool per_row,
                                int64_t unscale, int device, int64_t stream) {
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
  args.grad_loss = pointer<const float>(grad_loss);
  args.per_row = per_row;
  args.unscale = pointer<const float>(unscale);
  args.queue = {device, pointer<void>(stream)};
  return run([&] { return scale_gradient(args); });
}

inline void bind_logit_losses(py::module_& m) {
  py::class_<KdLossOptions>(m, "KdLossOptions", py::module_local())
      .def(py::init([](float temperature, float soft_weight, float hard_weight,
                       float label_smoothing, int divergence, double beta, float target_weight) {
             return KdLossOptions{temperature,
                                  soft_weight,
                                  hard_weight,
                                  label_smoothing,
                                  checked_code<Divergence>(divergence, 5, "divergence"),
                                  beta,
                                  target_weight};
           }),
           py::arg("temperature"), py::arg("soft_weight"), py::arg("hard_weight"),
           py::arg("label_smoothing"), py::arg("divergence"), py::arg("beta"),
           py::arg("target_weight"));
  py::class_<TopKKdLossOptions>(m, "TopKKdLossOptions", py::module_local())
      .def(py::init([](float temperature, float soft_weight, float hard_weight,
                       float label_smoothing, int tail, bool logits) {
             return TopKKdLossOptions{temperature,
                                      soft_weight,
                                      hard_weight,
                                      label_smoothing,
                                      checked_code<Tail>(tail, 4, "tail"),
                                      logits};
           }),
           py::arg("temperature"), py::arg("soft_weight"), py::arg("hard_weight"),
           py::arg("label_smoothing"), py::arg("tail"), py::arg("logits"));
  py::class_<RowOptions>(m, "RowOptions", py::module_local())
      .def(py::init([](int reduction, int64_t ignore_index) {
             RowOptions rows;
             rows.reduction = checked_code<Reduction>(reduction, 4, "reduction");
             rows.ignore_index = ignore_index;
             return rows;
           }),
           py::arg("reduction"), py::arg("ignore_index"));
  m.def("kd_loss", &kd_loss_call);
  m.def("topk_kd_loss", &topk_kd_loss_call);
  m.def("scale_gradient", &scale_gradient_call);
  m.def("workspace_bytes", &workspace_bytes);
}

}  // namespace fastkd
