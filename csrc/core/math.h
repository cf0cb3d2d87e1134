// SPDX-License-Identifier: Apache-2.0
// The vocabulary of a loss functor on one float. cpu/vec.h has the same functions on sixteen lanes.
#pragma once

#include "core/portable.h"

namespace fastkd {

FASTKD_HOST_DEVICE float fma(float a, float b, float c) {
#if defined(__CUDACC__) || defined(__FMA__)
  return ::fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
FASTKD_HOST_DEVICE float log(float x) { return ::logf(x); }
// NaN loses, as long as it is the first.
FASTKD_HOST_DEVICE float max(float a, float b) {
#if defined(__CUDA_ARCH__)
  return ::fmaxf(a, b);  // one instruction
#else
  return a > b ? a : b;
#endif
}

// 2^x for x <= 0, up to the rounding of the product that made x.
FASTKD_HOST_DEVICE float exp2_nonpositive(float x) { return ::exp2f(x); }

// x where condition is not 0 (NaN is not 0), else 0.
FASTKD_HOST_DEVICE float zero_where_zero(float condition, float x) {
  return condition != 0.0f ? x : 0.0f;
}

// Negative values become 0; NaN stays.
FASTKD_HOST_DEVICE float clamp_below_zero(float x) { return x < 0.0f ? 0.0f : x; }

// Which lanes hold a class of the row: all of them, or (one float) this one.
struct AllLanes {};
FASTKD_HOST_DEVICE float keep(AllLanes, float x) { return x; }
struct ThisLane {
  bool active;
};
FASTKD_HOST_DEVICE float keep(ThisLane lane, float x) { return lane.active ? x : 0.0f; }

}  // namespace fastkd
