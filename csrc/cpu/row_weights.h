// SPDX-License-Identifier: Apache-2.0
// One look at targets and weights before the logits, and one sum over row losses after them. Shared
// by all logit losses.
#pragma once

#include "core/row_weights.h"
#include "kernels.h"

namespace fastkd::cpu {

// What one look at targets and weights tells, before any logit is read.
struct RowCensus {
  Outcome outcome;
  double total_weight = 0.0;
  float largest_weight = 0.0f;  // by magnitude
};

RowCensus take_census(const LogitArgs& args, const RowWeights& weights);

// Sum in an order that no thread count changes.
double ordered_sum(const float* values, int64_t count);

}  // namespace fastkd::cpu
