// SPDX-License-Identifier: Apache-2.0
// Sixteen float lanes on every CPU, so that sums round alike on all of them.
//
// One struct over registers: 1 x AVX-512, 2 x AVX2, or 4 x 128 bits. The losses see its free
// functions.
#pragma once

#include <string.h>

#include "cpu/native.h"

namespace fastkd::cpu {

constexpr int kLanes = 16;
constexpr int kParts = kLanes / kNativeLanes;

struct Vec {
  using Lane = float;
  Native part[kParts];

  Vec() = default;
  explicit Vec(float x) {
    for (int i = 0; i < kParts; ++i) part[i] = splat(x);
  }
#if defined(__AVX512F__)
  explicit Vec(__m512 x) { part[0] = x; }
#endif
  // Part by part: GCC keeps what it copies whole in memory.
  static Vec load(const float* p) {
    Vec v;
    for (int i = 0; i < kParts; ++i) memcpy(&v.part[i], p + i * kNativeLanes, sizeof(Native));
    return v;
  }
  void store(float* p) const {
    for (int i = 0; i < kParts; ++i) memcpy(p + i * kNativeLanes, &part[i], sizeof(Native));
  }
};

template <class F>
inline Vec each(F f) {
  Vec out;
  for (int i = 0; i < kParts; ++i) out.part[i] = f(i);
  return out;
}

inline Vec operator+(Vec a, Vec b) {
  return each([&](int i) { return a.part[i] + b.part[i]; });
}
inline Vec operator-(Vec a, Vec b) {
  return each([&](int i) { return a.part[i] - b.part[i]; });
}
inline Vec operator*(Vec a, Vec b) {
  return each([&](int i) { return a.part[i] * b.part[i]; });
}
inline Vec operator/(Vec a, Vec b) {
  return each([&](int i) { return a.part[i] / b.part[i]; });
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return each([&](int i) { return native_fma(a.part[i], b.part[i], c.part[i]); });
}
inline Vec max(Vec a, Vec b) {
  return each([&](int i) { return native_max(a.part[i], b.part[i]); });
}
inline Vec exp2_nonpositive(Vec x) {
  return each([&](int i) { return native_exp2_nonpositive(x.part[i]); });
}
inline Vec log(Vec x) {
  return each([&](int i) { return native_log(x.part[i]); });
}
inline Vec log_ratio(Vec a, Vec b) {
  return each([&](int i) { return native_log_ratio(a.part[i], b.part[i]); });
}
inline Vec zero_where_zero(Vec condition, Vec x) {
  return each([&](int i) { return native_zero_where_zero(condition.part[i], x.part[i]); });
}
inline Vec where_less(Vec a, Vec b, Vec x, Vec otherwise) {
  return each(
      [&](int i) { return native_where_less(a.part[i], b.part[i], x.part[i], otherwise.part[i]); });
}
inline Vec subtract_where_equal(Vec x, Vec y, Vec a, Vec b) {
  return each([&](int i) {
    return native_subtract_where_equal(x.part[i], y.part[i], a.part[i], b.part[i]);
  });
}
// x < 0 becomes 0; NaN stays.
inline Vec clamp_below_zero(Vec x) { return max(Vec(0.0f), x); }

inline Vec sqrt(Vec x) {
  return each([&](int i) { return native_sqrt(x.part[i]); });
}
inline Vec clamp(Vec x, Vec bound) {
  return each([&](int i) { return native_clamp(x.part[i], bound.part[i]); });
}
inline Vec sign(Vec x) {
  return each([&](int i) {
    const Native negative = x.part[i] < 0.0f ? splat(-1.0f) : x.part[i];
    return x.part[i] > 0.0f ? splat(1.0f) : negative;
  });
}
// The larger; NaN in x stays.
inline Vec at_least(Vec bound, Vec x) { return max(bound, x); }
inline Vec zero_unless_above(Vec bound, Vec x, Vec value) {
  return each([&](int i) { return x.part[i] > bound.part[i] ? value.part[i] : Native{}; });
}

// Tree sum: lane i meets i + 8, then i + 4, i + 2, i + 1. The intrinsic adds in the same order.
inline float sum_lanes(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v.part[0]);
#else
  float lane[kLanes];
  v.store(lane);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
#endif
}

inline float max_lanes(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v.part[0]);
#else
  float lane[kLanes];
  v.store(lane);
  float maximum = lane[0];
  for (int i = 1; i < kLanes; ++i) maximum = lane[i] > maximum ? lane[i] : maximum;
  return maximum;
#endif
}

inline bool all_nonzero(Vec v) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(v.part[0], _mm512_setzero_ps(), _CMP_EQ_OQ) == 0;
#else
  float lane[kLanes];
  v.store(lane);
  bool all = true;
  for (float x : lane) all &= x != 0.0f;
  return all;
#endif
}

// ---- which lanes take part --------------------------------------------------------------------

inline Vec keep(AllLanes, Vec v) { return v; }

// x in the lanes whose bit is set.
inline Vec fill_lanes(uint32_t lanes, float x, Vec v) {
#if defined(__AVX512F__)
  return Vec(_mm512_mask_mov_ps(v.part[0], static_cast<__mmask16>(lanes), _mm512_set1_ps(x)));
#else
  float lane[kLanes];
  v.store(lane);
  for (int i = 0; i < kLanes; ++i) lane[i] = (lanes >> i & 1u) != 0 ? x : lane[i];
  return Vec::load(lane);
#endif
}

// The first `count` lanes.
struct FirstLanes {
  int count;
};
inline Vec keep(FirstLanes lanes, Vec v) {
#if defined(__AVX512F__)
  return Vec(_mm512_maskz_mov_ps(static_cast<__mmask16>((1u << lanes.count) - 1u), v.part[0]));
#else
  float lane[kLanes];
  v.store(lane);
  for (int i = lanes.count; i < kLanes; ++i) lane[i] = 0.0f;
  return Vec::load(lane);
#endif
}

}  // namespace fastkd::cpu
