// SPDX-License-Identifier: Apache-2.0
// One register of floats, the widest that the build allows: AVX-512, AVX2, or 128 bits of plain
// compiler vectors (SSE2, NEON, anything).
#pragma once

#include "core/math.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastkd::cpu {

#if defined(__AVX512F__)
constexpr int kNativeLanes = 16;
#elif defined(__AVX2__)
constexpr int kNativeLanes = 8;
#else
constexpr int kNativeLanes = 4;
#endif

typedef float Native __attribute__((vector_size(4 * kNativeLanes)));
typedef int32_t NativeInt __attribute__((vector_size(4 * kNativeLanes)));

inline Native splat(float x) { return x - Native{}; }  // x - 0 is x, even for -0

// max(a, b) is b where either is NaN: row maxima drop NaN with max(x, maximum), clamps keep it with
// max(limit, x).
inline Native native_max(Native a, Native b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// Builds use -ffp-contract=off: a product is fused into a sum here and nowhere else.
inline Native native_fma(Native a, Native b, Native c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// x where condition != 0 (NaN counts as not 0), else 0.
inline Native native_zero_where_zero(Native condition, Native x) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(condition, _mm512_setzero_ps(), _CMP_NEQ_UQ), x);
#else
  return reinterpret_cast<Native>((condition != 0.0f) & reinterpret_cast<NativeInt>(x));
#endif
}

inline Native native_where_less(Native a, Native b, Native x, Native otherwise) {
#if defined(__AVX512F__)
  return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
#else
  return a < b ? x : otherwise;
#endif
}

// x - y where a == b, else x.
inline Native native_subtract_where_equal(Native x, Native y, Native a, Native b) {
#if defined(__AVX512F__)
  return _mm512_mask_sub_ps(x, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), x, y);
#else
  return x - reinterpret_cast<Native>((a == b) & reinterpret_cast<NativeInt>(y));
#endif
}

// 2^x = 2^floor(x) * 2^rest, rest in [0, 1] by a minimax polynomial with 2^0 = 1 (relative error
// 8e-8, after rounding at most 1.4e-7, 6e-8 rms). For x <= 0 up to rounding; -inf gives 0, and so
// does x < -126 (AVX-512: below the subnormals).
inline Native native_exp2_nonpositive(Native x) {
#if defined(__AVX512F__)
  const Native rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // -inf: 0
#else
  const Native clamped = native_max(splat(-127.0f), x);
  const Native shifter = splat(12582912.0f);  // 1.5 * 2^23: the low bits of a sum are its integer
  const Native shifted = (clamped - splat(0.5f)) + shifter;
  const Native rest = clamped - (shifted - shifter);
#endif
  Native poly = splat(1.86713051e-3f);
  poly = native_fma(poly, rest, splat(9.01702885e-3f));
  poly = native_fma(poly, rest, splat(5.57999127e-2f));
  poly = native_fma(poly, rest, splat(2.40164444e-1f));
  poly = native_fma(poly, rest, splat(6.93151295e-1f));
  poly = native_fma(poly, rest, splat(1.0f));
#if defined(__AVX512F__)
  return _mm512_scalef_ps(poly, x);  // by 2^floor(x)
#else
  const NativeInt exponent = reinterpret_cast<NativeInt>(shifted) << 23;  // drops all but floor(x)
  const Native power = reinterpret_cast<Native>(exponent + 0x3f800000);
  return x < -126.0f ? Native{} : poly * power;
#endif
}

// Natural logarithm: x = 2^e * m with m in [sqrt(1/2), sqrt(2)), log(m) by a
// minimax polynomial for 2 atanh((m - 1) / (m + 1)), relative error 8e-9 before rounding. log(0) =
// -inf, log(negative) and log(NaN) = NaN, log(inf) = inf.
inline Native native_log(Native x) {
  const Native smallest = splat(FLT_MIN);
  const Native normal = x < smallest ? x * 8388608.0f : x;                  // 2^23 lifts subnormals
  const NativeInt bits = reinterpret_cast<NativeInt>(normal) - 0x3f3504f3;  // sqrt(1/2)
  const NativeInt exponent = bits >> 23;
  const Native m = reinterpret_cast<Native>((bits & 0x007fffff) + 0x3f3504f3);
  const Native lifted = x < smallest ? splat(-23.0f) : Native{};
  const Native e = __builtin_convertvector(exponent, Native) + lifted;
  const Native ratio = (m - 1.0f) / (m + 1.0f);
  const Native square = ratio * ratio;
  Native series = splat(0.147905916f);
  series = native_fma(series, square, splat(0.199943721f));
  series = native_fma(series, square, splat(0.333333433f));
  const Native twice = ratio + ratio;
  // 0.693359375 is log(2) to 9 bits: its product with e is exact, the rest is added last.
  const Native small = native_fma(twice * square, series, e * -2.12194440e-4f);
  Native result = native_fma(e, splat(0.693359375f), twice + small);
  result = x > FLT_MAX ? x : result;
  const Native minus_infinity = splat(-INFINITY);
  result = x == 0.0f ? minus_infinity : result;
  const Native not_a_number = splat(NAN);
  return x >= 0.0f ? result : not_a_number;
}

// log(a / b), b > 0, by one division: a is brought within [2/3, 3/2] of b by a power
// of two 2^e, the rest as in native_log (relative error 3e-9 before rounding). Exactly 0 where a =
// b, and no digits are lost where they are near. Of 0 or NaN it is any number or NaN.
inline Native native_log_ratio(Native a, Native b) {
  const NativeInt bits = reinterpret_cast<NativeInt>(a);
  const NativeInt difference = bits - reinterpret_cast<NativeInt>(b);
  const NativeInt exponent =
      (difference + 0x00400000) & static_cast<int32_t>(0xff800000);  // e 2^23
  const Native near = reinterpret_cast<Native>(bits - exponent);
  const Native e = __builtin_convertvector(exponent, Native);
  const Native ratio = (near - b) / (near + b);
  const Native square = ratio * ratio;
  Native series = splat(0.15190625f);
  series = native_fma(series, square, splat(0.19978430f));
  series = native_fma(series, square, splat(0.33333478f));
  const Native twice = ratio + ratio;
  const Native rest = native_fma(twice * square, series, twice);
  return native_fma(e, splat(8.2629583e-8f), rest);  // log(2) / 2^23
}

inline Native native_sqrt(Native x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#else
  Native out;
  for (int i = 0; i < kNativeLanes; ++i) out[i] = ::sqrtf(x[i]);
  return out;
#endif
}

// To [-bound, bound]; NaN stays.
inline Native native_clamp(Native x, Native bound) {
#if defined(__AVX512F__)
  return _mm512_min_ps(bound, _mm512_max_ps(-bound, x));  // x where either is NaN
#elif defined(__AVX2__)
  return _mm256_min_ps(bound, _mm256_max_ps(-bound, x));
#else
  const Native low = x < -bound ? -bound : x;
  return low > bound ? bound : low;
#endif
}

}  // namespace fastkd::cpu
