// SPDX-License-Identifier: Apache-2.0
// What one call needs of its rows besides the losses: how many count, and the sum of their losses.
// Without atomics and in an order that depends on the number of rows alone.
#pragma once

#include "cuda/launch.h"
#include "cuda/row_call.h"

namespace fastkd::cuda {

// Where a call keeps what its kernels tell each other.
struct Workspace {
  CallSummary* summary;
  void* partials;   // of the blocks of one of the sums
  float* row_loss;  // [rows]

  Workspace(void* memory, int64_t rows);
  static int64_t bytes(int64_t rows);
};

// Weighs the rows and writes `summary` and args.unscale. `grad_bound`: largest gradient of a row
// that weighs 1.
void launch_census(Launcher& launch, const LogitArgs& args, const RowOptions& rows,
                   double grad_bound, const Workspace& workspace);

// args.loss[0] = sum of row losses / denominator; summary == nullptr: `inverse` is the factor.
void launch_sum_of_losses(Launcher& launch, const LogitArgs& args, const CallSummary* summary,
                          double inverse, const Workspace& workspace);

}  // namespace fastkd::cuda
