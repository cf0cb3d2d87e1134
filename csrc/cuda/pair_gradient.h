// SPDX-License-Identifier: Apache-2.0
// From slopes of pairs to the gradient of the embeddings.
#pragma once

#include "cuda/pair_block.h"

namespace fastkd::cuda {

// args.grad_i = sum_j pulls_ij (x_j - g_ij x_i) + stretches_i x_i over the student's rows.
// pulls: [stride, stride], symmetric; stretches: [rows], or nullptr: 0. directed: g is the pull's
// (losses/similarity.h), else 1.
void launch_pair_gradient(Launcher& launch, const PairArgs& args, const float* pulls,
                          const float* stretches, bool directed);

void launch_zeros(Launcher& launch, float* out, int64_t count);

}  // namespace fastkd::cuda
