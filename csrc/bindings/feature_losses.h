// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "bindings/bindings.h"

namespace fastkd {

constexpr int kChannels = 1;  // features are [samples, channels, positions]

inline void check_features(const TensorRef& features, const char* name) {
  if (features.rank != 3 || features.sizes[kChannels] < 1) {
    reject(std::string(name) + " must be [samples, channels, positions]");
  }
}

// Whether neighbours along a dimension are neighbours in memory.
inline bool contiguous_along(const TensorRef& tensor, int dim) {
  return tensor.strides[dim] == 1 || tensor.sizes[dim] == 1;
}

// The kernels go along contiguous positions or contiguous channels, the same in all tensors.
inline bool readable(const TensorRef& a, const TensorRef& b) {
  const auto along = [&](int dim) { return contiguous_along(a, dim) && contiguous_along(b, dim); };
  return along(2) || along(kChannels);
}

inline LogitView view_of(const TensorRef& tensor) {
  LogitView view;
  view.data = tensor.data;
  view.dtype = tensor.dtype;
  view.classes = tensor.sizes[kChannels];
  view.stride_outer = tensor.strides[0];
  view.stride_class = tensor.sizes[kChannels] == 1 ? 1 : tensor.strides[kChannels];
  view.stride_inner = tensor.sizes[2] == 1 ? 1 : tensor.strides[2];
  return view;
}

inline bool attention_transfer_loss_call(double power, bool mean,
                                         const py::object& student_features,
                                         const py::object& teacher_features, int64_t loss,
                                         int64_t map_grad, int64_t workspace, int device,
                                         int64_t stream) {
  const TensorRef student = read_tensor(student_features);
  const TensorRef teacher = read_tensor(teacher_features);
  check_features(student, "student");
  check_features(teacher, "teacher");
  AttentionArgs args;
  args.samples = student.sizes[0];
  args.positions = student.sizes[2];
  if (teacher.sizes[0] != args.samples || teacher.sizes[2] != args.positions) {
    reject("student and teacher differ in samples or positions");
  }
  if (!readable(student, student) || !readable(teacher, teacher)) return false;
  args.student = view_of(student);
  args.teacher = view_of(teacher);
  args.power = power;
  args.mean = mean;
  args.loss = required<float>(loss, "loss");
  args.with_grad = map_grad != 0;
  args.map_grad = pointer<float>(map_grad);
  args.workspace = pointer<void>(workspace);
  args.queue = {device, pointer<void>(stream)};
  if (workspace == 0 && attention_transfer_loss_workspace(args) != 0) reject("no workspace");
  return run([&] { return attention_transfer_loss(args); });
}

inline bool attention_transfer_gradient_call(double power, const py::object& student_features,
                                             int64_t map_grad, int64_t grad_loss,
                                             const py::object& grad_student, int device,
                                             int64_t stream) {
  const TensorRef student = read_tensor(student_features);
  const TensorRef grad = read_tensor(grad_student);
  check_features(student, "student");
  check_features(grad, "gradient");
  for (int i = 0; i < 3; ++i) {
    if (student.sizes[i] != grad.sizes[i]) reject("student and gradient differ in shape");
  }
  if (student.dtype != grad.dtype) reject("the gradient must have the student's dtype");
  AttentionGradArgs args;
  args.samples = student.sizes[0];
  args.positions = student.sizes[2];
  if (!readable(student, grad)) return false;
  args.student = view_of(student);
  args.grad = view_of(grad);
  args.power = power;
  args.map_grad = pointer<const float>(map_grad);
  args.grad_loss = required<const float>(grad_loss, "grad_loss");
  args.queue = {device, pointer<void>(stream)};
  return run([&] { return attention_transfer_gradient(args); });
}

inline void bind_feature_losses(py::module_& m) {
  m.def("attention_transfer_loss", &attention_transfer_loss_call);
  m.def("attention_transfer_gradient", &attention_transfer_gradient_call);
  m.def("attention_transfer_loss_workspace",
        [](int64_t samples, int64_t positions, bool with_grad) {
          AttentionArgs args;
          args.samples = samples;
          args.positions = positions;
          args.with_grad = with_grad;
          return attention_transfer_loss_workspace(args);
        });
}

}  // namespace fastkd
