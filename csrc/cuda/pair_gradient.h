// SPDX-License-Identifier: Apache-2.0
// From slopes of pairs to the gradient of the embeddings.
#pragma once

#include "cuda/pair_block.h"

namespace fastkd::cuda {

// args.grad_i = sum_j pairs_ij (x_j - g_ij x_i) + stretches_i x_i over the student's rows.
template <class T>
struct Pulls {
  const T* pairs;      // [stride, stride], symmetric
  const T* stretches;  // [rows], or nullptr: 0
};

// directed: g is the pull's (losses/similarity.h), else 1. wide: on the device, whether the turn is
// the other function's, and nothing is done; nullptr: it is not.
void launch_pair_gradient(Launcher& launch, const PairArgs& args, const Pulls<float>& pulls,
                          bool directed, const bool* wide);

// In doubles, for pulls that nearly cancel. differences: g is 1, else 0. wide: whether the turn is
// this function's; nullptr: it is.
void launch_wide_gradient(Launcher& launch, const PairArgs& args, const Pulls<double>& pulls,
                          bool differences, const bool* wide);

void launch_zeros(Launcher& launch, float* out, int64_t count);

}  // namespace fastkd::cuda
