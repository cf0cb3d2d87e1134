// SPDX-License-Identifier: Apache-2.0
// What attention maps need of sixteen lanes: |x|, signs, and powers with any exponent.
#pragma once

#include "cpu/vec.h"
#include "losses/attention_transfer_loss.h"

namespace fastkd::cpu {

inline Native native_with_sign_of(Native magnitude, Native x) {
  constexpr int32_t kSign = INT32_MIN;
  return reinterpret_cast<Native>((reinterpret_cast<NativeInt>(magnitude) & ~kSign) |
                                  (reinterpret_cast<NativeInt>(x) & kSign));
}

// 2^x for x in [-1, 0], times 2^n for n in [-252, 252].
inline Native native_exp2_scaled(Native x, Native n) {
  const Native poly = native_exp2_nonpositive(x);
#if defined(__AVX512F__)
  return _mm512_scalef_ps(poly, n);
#else
  const NativeInt whole = __builtin_convertvector(n, NativeInt);
  const NativeInt half = whole >> 1;  // 2^n itself may be no float where the result is one
  const Native first = reinterpret_cast<Native>((half + 127) << 23);
  const Native second = reinterpret_cast<Native>((whole - half + 127) << 23);
  return poly * first * second;
#endif
}

// a^exponent for a >= 0; 0 at 0, inf and NaN stay. a = 2^e m, m in [sqrt(1/2), sqrt(2)), and e
// times the exponent is exact, so the error is that of m alone: at most 3.1e-7 at p = 2.5, 8e-7
// at 10.
inline Native native_power(Native a, const Exponent& exponent) {
  const Native lift = splat(8388608.0f);  // 2^23 lifts subnormals
  const Native smallest = splat(FLT_MIN);
  const Native normal = a < smallest ? a * lift : a;
  const NativeInt bits = reinterpret_cast<NativeInt>(normal) - 0x3f3504f3;  // sqrt(1/2)
  const Native m = reinterpret_cast<Native>((bits & 0x007fffff) + 0x3f3504f3);
  const Native lifted = a < smallest ? splat(-23.0f) : Native{};
  const NativeInt whole = bits >> 23;
  const Native e = __builtin_convertvector(whole, Native) + lifted;
  // log2(m) = 2 / ln(2) atanh(ratio), as in native_log.
  const Native ratio = (m - 1.0f) / (m + 1.0f);
  const Native square = ratio * ratio;
  Native series = splat(0.426766263f);  // native_log's coefficients times 2 / ln(2)
  series = native_fma(series, square, splat(0.576915629f));
  series = native_fma(series, square, splat(0.961796982f));
  const Native log2_m = native_fma(ratio * square, series, ratio * 2.88539008f);

  const Native exact = e * exponent.high;
  const Native rest = native_fma(e, splat(exponent.low), log2_m * exponent.value);
  const Native total = exact + rest;
  const Native low = splat(-200.0f), high = splat(200.0f);
  const Native within = total < low ? low : total > high ? high : total;
  const Native shifter = splat(12582912.0f);  // 1.5 * 2^23: a sum with it is rounded to an integer
  const Native n = ((within + 0.5f) + shifter) - shifter;
  Native result = native_exp2_scaled((exact - n) + rest, n);
  const Native infinite = splat(INFINITY);
  result = total > high ? infinite : total < low ? Native{} : result;
  const Native largest = splat(FLT_MAX);
  result = a <= largest ? result : a;
  return native_zero_where_zero(a, result);
}

inline Vec magnitude(Vec x) {
  return each([&](int i) { return native_with_sign_of(x.part[i], Native{}); });
}
inline Vec with_sign_of(Vec magnitude, Vec x) {
  return each([&](int i) { return native_with_sign_of(magnitude.part[i], x.part[i]); });
}
inline Vec power(Vec a, const Exponent& exponent) {
  return each([&](int i) { return native_power(a.part[i], exponent); });
}

}  // namespace fastkd::cpu
