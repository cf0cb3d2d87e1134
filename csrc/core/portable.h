// SPDX-License-Identifier: Apache-2.0
// What every header of the core may rely on, whichever compiler reads it.
#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define FASTKD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTKD_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fastkd {

constexpr float kLog2E = 1.44269504088896340736f;

// Maxima start here, not at -inf: a row or tile that is all -inf then gives exp(-inf) = 0 and not
// exp(-inf + inf) = NaN.
constexpr float kLowest = -FLT_MAX;

}  // namespace fastkd
