// SPDX-License-Identifier: Apache-2.0
// What a driver needs for one call of a softmax-type loss, whatever the loss.
#pragma once

#include "core/logit_args.h"
#include "cpu/row_weights.h"

namespace fastkd::cpu {

template <class Loss>
struct SoftmaxCall {
  LogitArgs args;
  typename Loss::Params params;
  RowWeights weights;
  float grad_factor;  // row weight -> gradient scale: 1 / denominator, prescaled for float16
  float* row_loss;    // [rows], weighted, not yet divided
  bool streaming;     // the gradient is too large for any cache to keep

  // Classes that take part in the soft term; the student may have more (common_vocab).
  int64_t shared_classes() const {
    return args.student.classes < args.teacher.classes ? args.student.classes
                                                       : args.teacher.classes;
  }
  bool wants_grad() const { return args.grad.data != nullptr; }
};

}  // namespace fastkd::cpu
