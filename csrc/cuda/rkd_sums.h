// SPDX-License-Identifier: Apache-2.0
// Between the kernels that make parts of sums and those that need the sums: one block each.
#pragma once

#include "cuda/rkd_memory.h"

namespace fastkd::cuda {

// memory.census -> memory.summary.
void launch_summary(Launcher& launch, const RkdMemory& memory, double eps);

// The loss, and summary.mean_slope.
void launch_rkd_sum(Launcher& launch, const RkdMemory& memory, const RkdFactors& factors,
                    float* loss);

}  // namespace fastkd::cuda
