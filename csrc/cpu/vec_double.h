// SPDX-License-Identifier: Apache-2.0
// Sixteen doubles on every CPU, for what a float can't hold. The losses see the free functions.
#pragma once

#include <initializer_list>

#include "cpu/vec.h"

namespace fastkd::cpu {

constexpr int kNativeDoubles = kNativeLanes / 2;
constexpr int kDoubleParts = kLanes / kNativeDoubles;

typedef double NativeDouble __attribute__((vector_size(8 * kNativeDoubles)));
typedef int64_t NativeLong __attribute__((vector_size(8 * kNativeDoubles)));
typedef float HalfNative __attribute__((vector_size(4 * kNativeDoubles)));

inline NativeDouble splat(double x) { return x - NativeDouble{}; }

inline NativeDouble native_fma(NativeDouble a, NativeDouble b, NativeDouble c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// e^x to about 1e-15: x = k log(2) + r with |r| <= log(2) / 2, e^r by its Taylor series.
inline NativeDouble native_exp(NativeDouble x) {
  const NativeDouble shifter = splat(6755399441055744.0);  // 1.5 * 2^52: sums are integers
  const NativeDouble shifted = native_fma(x, splat(1.4426950408889634), shifter);
  const NativeDouble k = shifted - shifter;
  // log(2) in two parts: the product of k with the first is exact.
  NativeDouble r = native_fma(k, splat(-0.693147180369123816490), x);
  r = native_fma(k, splat(-1.90821492927058770002e-10), r);
  NativeDouble series = splat(1.0 / 479001600.0);
  for (const double factorial :
       {39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0}) {
    series = native_fma(series, r, splat(1.0 / factorial));
  }
  const NativeLong exponent = reinterpret_cast<NativeLong>(shifted) << 52;
  const NativeLong one = reinterpret_cast<NativeLong>(splat(1.0));
  const NativeDouble result = series * reinterpret_cast<NativeDouble>(exponent + one);
  const NativeDouble low = x < -708.0 ? NativeDouble{} : result;
  const NativeDouble infinity = splat(static_cast<double>(INFINITY));
  return x > 709.0 ? infinity : low;
}

// Natural logarithm of a normal number to about 1e-15: x = 2^e m with m in [sqrt(1/2), sqrt(2)),
// log(m) by the series of 2 atanh((m - 1) / (m + 1)). log(0) = -inf, log(negative) = NaN.
inline NativeDouble native_log(NativeDouble x) {
  const NativeLong root = reinterpret_cast<NativeLong>(splat(0.70710678118654752));
  const NativeLong bits = reinterpret_cast<NativeLong>(x) - root;
  const NativeLong fraction = bits & int64_t{0x000fffffffffffff};
  const NativeDouble m = reinterpret_cast<NativeDouble>(fraction + root);
  const NativeLong shifter = reinterpret_cast<NativeLong>(splat(6755399441055744.0));
  const NativeDouble e =
      reinterpret_cast<NativeDouble>((bits >> 52) + shifter) - splat(6755399441055744.0);
  const NativeDouble ratio = (m - 1.0) / (m + 1.0);
  const NativeDouble square = ratio * ratio;
  NativeDouble series = splat(1.0 / 21.0);
  for (const double odd : {19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0}) {
    series = native_fma(series, square, splat(1.0 / odd));
  }
  const NativeDouble twice = ratio + ratio;
  const NativeDouble small =
      native_fma(twice * square, series, e * splat(1.90821492927058770002e-10));
  NativeDouble result = native_fma(e, splat(0.693147180369123816490), twice + small);
  const NativeDouble minus_infinity = splat(-static_cast<double>(INFINITY));
  result = x == 0.0 ? minus_infinity : result;
  result = x > DBL_MAX ? x : result;
  const NativeDouble not_a_number = splat(static_cast<double>(NAN));
  return x >= 0.0 ? result : not_a_number;
}

struct DoubleVec {
  using Lane = double;
  NativeDouble part[kDoubleParts];

  DoubleVec() = default;
  explicit DoubleVec(double x) {
    for (int i = 0; i < kDoubleParts; ++i) part[i] = splat(x);
  }
  static DoubleVec load(const double* p) {
    DoubleVec v;
    for (int i = 0; i < kDoubleParts; ++i) {
      memcpy(&v.part[i], p + i * kNativeDoubles, sizeof(NativeDouble));
    }
    return v;
  }
  static DoubleVec load(const float* p) {
    DoubleVec v;
    for (int i = 0; i < kDoubleParts; ++i) {
      HalfNative half;
      memcpy(&half, p + i * kNativeDoubles, sizeof(half));
      v.part[i] = __builtin_convertvector(half, NativeDouble);
    }
    return v;
  }
  void store(double* p) const {
    for (int i = 0; i < kDoubleParts; ++i) {
      memcpy(p + i * kNativeDoubles, &part[i], sizeof(NativeDouble));
    }
  }
};

template <class F>
inline DoubleVec each_double(F f) {
  DoubleVec out;
  for (int i = 0; i < kDoubleParts; ++i) out.part[i] = f(i);
  return out;
}

inline DoubleVec operator+(DoubleVec a, DoubleVec b) {
  return each_double([&](int i) { return a.part[i] + b.part[i]; });
}
inline DoubleVec operator-(DoubleVec a, DoubleVec b) {
  return each_double([&](int i) { return a.part[i] - b.part[i]; });
}
inline DoubleVec operator*(DoubleVec a, DoubleVec b) {
  return each_double([&](int i) { return a.part[i] * b.part[i]; });
}
inline DoubleVec operator/(DoubleVec a, DoubleVec b) {
  return each_double([&](int i) { return a.part[i] / b.part[i]; });
}
inline DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) {
  return each_double([&](int i) { return native_fma(a.part[i], b.part[i], c.part[i]); });
}
inline DoubleVec exp(DoubleVec x) {
  return each_double([&](int i) { return native_exp(x.part[i]); });
}
inline DoubleVec log(DoubleVec x) {
  return each_double([&](int i) { return native_log(x.part[i]); });
}
inline DoubleVec clamp(DoubleVec x, DoubleVec bound) {
  return each_double([&](int i) {
    const NativeDouble low = x.part[i] < -bound.part[i] ? -bound.part[i] : x.part[i];
    return low > bound.part[i] ? bound.part[i] : low;
  });
}
inline DoubleVec sign(DoubleVec x) {
  return each_double([&](int i) {
    const NativeDouble negative = x.part[i] < 0.0 ? splat(-1.0) : x.part[i];
    return x.part[i] > 0.0 ? splat(1.0) : negative;
  });
}
inline DoubleVec max(DoubleVec a, DoubleVec b) {
  return each_double([&](int i) { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; });
}
inline DoubleVec sqrt(DoubleVec x) {
  return each_double([&](int i) {
    NativeDouble roots{};
    for (int k = 0; k < kNativeDoubles; ++k) roots[k] = ::sqrt(x.part[i][k]);
    return roots;
  });
}
inline DoubleVec at_least(DoubleVec bound, DoubleVec x) {
  return each_double([&](int i) { return x.part[i] < bound.part[i] ? bound.part[i] : x.part[i]; });
}
inline DoubleVec zero_unless_above(DoubleVec bound, DoubleVec x, DoubleVec value) {
  return each_double(
      [&](int i) { return x.part[i] > bound.part[i] ? value.part[i] : NativeDouble{}; });
}
// x where it is above bound and less than `smallest`, else that.
inline DoubleVec smallest_above(DoubleVec bound, DoubleVec x, DoubleVec smallest) {
  return each_double([&](int i) {
    const NativeDouble least = x.part[i] < smallest.part[i] ? x.part[i] : smallest.part[i];
    return x.part[i] > bound.part[i] ? least : smallest.part[i];
  });
}

// The first `count` lanes; the others become 0.
inline DoubleVec keep(FirstLanes lanes, DoubleVec v) {
  double lane[kLanes];
  v.store(lane);
  for (int i = lanes.count; i < kLanes; ++i) lane[i] = 0.0;
  return DoubleVec::load(lane);
}

inline Vec to_single(Vec v) { return v; }
inline Vec to_single(DoubleVec v) {
  float lane[kLanes];
  for (int i = 0; i < kDoubleParts; ++i) {
    const HalfNative half = __builtin_convertvector(v.part[i], HalfNative);
    memcpy(lane + i * kNativeDoubles, &half, sizeof(half));
  }
  return Vec::load(lane);
}

// Tree sum, as that of Vec.
inline double sum_lanes(DoubleVec v) {
  double lane[kLanes];
  v.store(lane);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

inline double min_lanes(DoubleVec v) {
  double lane[kLanes];
  v.store(lane);
  double minimum = lane[0];
  for (int i = 1; i < kLanes; ++i) minimum = lane[i] < minimum ? lane[i] : minimum;
  return minimum;
}

inline double max_lanes(DoubleVec v) {
  double lane[kLanes];
  v.store(lane);
  double maximum = lane[0];
  for (int i = 1; i < kLanes; ++i) maximum = lane[i] > maximum ? lane[i] : maximum;
  return maximum;
}

}  // namespace fastkd::cpu
