// SPDX-License-Identifier: Apache-2.0
// Which rows count, how much, and how row losses become the reduced loss. Shared by all logit
// losses.
#pragma once

#include "core/logit_args.h"
#include "kernels.h"

namespace fastkd::cpu {

// A row weighs 0 if its target is ignored or its sample weight is 0; its logits are then not looked
// at, so NaN there does no harm.
struct RowWeights {
  const int64_t* target;
  const float* sample_weight;
  int64_t ignore_index;

  float operator()(int64_t row) const {
    if (target != nullptr && target[row] == ignore_index) return 0.0f;
    return sample_weight == nullptr ? 1.0f : sample_weight[row];
  }
};

// What one look at targets and weights tells, before any logit is read.
struct RowCensus {
  Outcome outcome;
  double total_weight = 0.0;
  float largest_weight = 0.0f;  // by magnitude
};

RowCensus take_census(const LogitArgs& args, const RowWeights& weights);

// 1 / denominator of the reduction; 0 where nothing counts, so that loss and gradient are 0.
double inverse_denominator(const RowOptions& rows, double total_weight);

// Sum in an order that no thread count changes.
double ordered_sum(const float* values, int64_t count);

}  // namespace fastkd::cpu
