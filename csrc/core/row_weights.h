// SPDX-License-Identifier: Apache-2.0
// Which rows count, how much, and what divides their sum; the same on every device.
#pragma once

#include "core/logit_args.h"

namespace fastkd {

// A row weighs 0 if its target is ignored or its sample weight is 0; its logits are then not looked
// at, so NaN there does no harm.
struct RowWeights {
  const int64_t* target;       // [rows], or nullptr
  const float* sample_weight;  // [rows], or nullptr
  int64_t ignore_index;

  FASTKD_HOST_DEVICE float operator()(int64_t row) const {
    if (target != nullptr && target[row] == ignore_index) return 0.0f;
    return sample_weight == nullptr ? 1.0f : sample_weight[row];
  }
};

// 1 / denominator of the reduction; 0 where nothing counts, so that loss and gradient are 0. A
// denominator that is no number, or none that can be divided by, makes them NaN.
FASTKD_HOST_DEVICE double inverse_denominator(const RowOptions& rows, double total_weight) {
  double denominator = 1.0;
  if (rows.num_items >= 0.0) {
    denominator = rows.num_items;
  } else if (rows.reduction == Reduction::kMean) {
    denominator = total_weight;
  } else if (rows.reduction == Reduction::kBatchMean) {
    denominator = static_cast<double>(rows.batch_size);
  }
  if (!(::fabs(denominator) <= DBL_MAX)) return static_cast<double>(NAN);
  return denominator == 0.0 ? 0.0 : 1.0 / denominator;
}

// A power of two that lifts a float16 gradient out of the subnormals: |gradient| <= bound < 2^13
// after it. scale_gradient takes it back when grad_loss (often a loss scale of 2^16) is known.
FASTKD_HOST_DEVICE float float16_prescale(double bound) {
  if (!(bound > 0.0) || bound > 1e30) return 1.0f;
  int exponent = 0;
  ::frexp(bound, &exponent);  // bound < 2^exponent
  const int shift = 13 - exponent;
  return ::ldexpf(1.0f, shift < -60 ? -60 : shift > 60 ? 60 : shift);
}

}  // namespace fastkd
