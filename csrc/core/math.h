// SPDX-License-Identifier: Apache-2.0
// The vocabulary of a loss functor on one float or double. cpu/vec.h has the same functions on
// sixteen floats, cpu/vec_double.h on sixteen doubles.
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

FASTKD_HOST_DEVICE float where_less(float a, float b, float x, float otherwise) {
  return a < b ? x : otherwise;
}

// log(a / b) for a >= b / 2 > 0: exactly 0 where they are equal, and no digits are lost where they
// are near. Of a = 0 it is any number, of NaN any number or NaN.
FASTKD_HOST_DEVICE float log_ratio(float a, float b) { return ::log1pf((a - b) / b); }

// Negative values become 0; NaN stays.
FASTKD_HOST_DEVICE float clamp_below_zero(float x) { return x < 0.0f ? 0.0f : x; }

// Which lanes hold a class of the row: all of them, or (one float) this one.
struct AllLanes {};
FASTKD_HOST_DEVICE float keep(AllLanes, float x) { return x; }
struct ThisLane {
  bool active;
};
FASTKD_HOST_DEVICE float keep(ThisLane lane, float x) { return lane.active ? x : 0.0f; }

// ---- of relational losses, on floats and doubles ----

FASTKD_HOST_DEVICE double fma(double a, double b, double c) {
#if defined(__CUDACC__) || defined(__FMA__)
  return ::fma(a, b, c);
#else
  return a * b + c;
#endif
}
FASTKD_HOST_DEVICE float sqrt(float x) { return ::sqrtf(x); }
FASTKD_HOST_DEVICE double sqrt(double x) { return ::sqrt(x); }
FASTKD_HOST_DEVICE double log(double x) { return ::log(x); }
FASTKD_HOST_DEVICE double exp(double x) { return ::exp(x); }

FASTKD_HOST_DEVICE float to_single(double x) { return static_cast<float>(x); }

// The larger; NaN in x stays.
FASTKD_HOST_DEVICE float at_least(float bound, float x) { return x < bound ? bound : x; }
FASTKD_HOST_DEVICE double at_least(double bound, double x) { return x < bound ? bound : x; }

// value where x > bound, else 0.
FASTKD_HOST_DEVICE float zero_unless_above(float bound, float x, float value) {
  return x > bound ? value : 0.0f;
}
FASTKD_HOST_DEVICE double zero_unless_above(double bound, double x, double value) {
  return x > bound ? value : 0.0;
}

// To [-bound, bound]; NaN stays.
FASTKD_HOST_DEVICE float clamp(float x, float bound) {
  return x > bound ? bound : x < -bound ? -bound : x;
}
FASTKD_HOST_DEVICE double clamp(double x, double bound) {
  return x > bound ? bound : x < -bound ? -bound : x;
}

// -1, 0 or 1; NaN stays.
FASTKD_HOST_DEVICE float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }
FASTKD_HOST_DEVICE double sign(double x) { return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : x; }

// What one lane of V holds.
template <class V>
struct LaneOf {
  using type = typename V::Lane;
};
template <>
struct LaneOf<float> {
  using type = float;
};
template <>
struct LaneOf<double> {
  using type = double;
};
template <class V>
using Lane = typename LaneOf<V>::type;

}  // namespace fastkd
