// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes to and from memory in every element type.
#pragma once

#include "core/dtype.h"
#include "cpu/vec.h"

namespace fastkd::cpu {

inline Vec load(const float* p) { return Vec::load(p); }

#if defined(__AVX512F__)
template <class T>
Vec widen(__m256i halves);

template <>
inline Vec widen<BFloat16>(__m256i halves) {
  return Vec(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)));
}

template <>
inline Vec widen<Float16>(__m256i halves) {
  return Vec(_mm512_cvtph_ps(halves));
}
#endif

inline Vec load(const BFloat16* p) {
#if defined(__AVX512F__)
  return widen<BFloat16>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return each([&](int i) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  });
#else
  float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = to_float(p[i]);
  return Vec::load(lane);
#endif
}

inline Vec load(const Float16* p) {
#if defined(__AVX512F__)
  return widen<Float16>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return each([&](int i) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i)));
  });
#else
  float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = to_float(p[i]);
  return Vec::load(lane);
#endif
}

#if defined(__AVX512F__)
// Rounded to a half type: to nearest even, NaN stays NaN.
template <class T>
__m256i narrow(Vec v);

template <>
inline __m256i narrow<BFloat16>(Vec v) {
  const __m512i bits = _mm512_castps_si512(v.part[0]);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v.part[0], v.part[0], _CMP_UNORD_Q);
  __m512i rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  rounded = _mm512_mask_add_epi32(rounded, odd, bits, _mm512_set1_epi32(0x8000));
  rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

template <>
inline __m256i narrow<Float16>(Vec v) {
  return _mm512_cvtps_ph(v.part[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#endif

inline void store(float* p, Vec v) { v.store(p); }

inline void store(BFloat16* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow<BFloat16>(v));
#else
  float lane[kLanes];
  v.store(lane);
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<BFloat16>(lane[i]);
#endif
}

inline void store(Float16* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow<Float16>(v));
#elif defined(__AVX2__)
  for (int i = 0; i < kParts; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * i),
                     _mm256_cvtps_ph(v.part[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#else
  float lane[kLanes];
  v.store(lane);
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<Float16>(lane[i]);
#endif
}

// Past the caches, for gradients that no cache can hold. p is aligned to the bytes stored.
template <class T>
inline void store_streaming(T* p, Vec v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) {
    _mm512_stream_ps(p, v.part[0]);
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow<T>(v));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == sizeof(float)) {
    for (int i = 0; i < kParts; ++i) _mm256_stream_ps(p + 8 * i, v.part[i]);
  } else {
    store(p, v);
  }
#else
  store(p, v);
#endif
}

inline void fence_streaming() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// The first `count` < 16 elements; the other lanes become `fill`.
template <class T>
inline Vec load_first(const T* p, int count, float fill) {
#if defined(__AVX512F__)
  const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1u);
  const __m512 filler = _mm512_set1_ps(fill);
  if constexpr (sizeof(T) == sizeof(float)) {
    return Vec(_mm512_mask_loadu_ps(filler, mask, p));
  } else {
    return Vec(
        _mm512_mask_mov_ps(filler, mask, widen<T>(_mm256_maskz_loadu_epi16(mask, p)).part[0]));
  }
#else
  float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = i < count ? to_float(p[i]) : fill;
  return Vec::load(lane);
#endif
}

template <class T>
inline void store_first(T* p, Vec v, int count) {
#if defined(__AVX512F__)
  const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1u);
  if constexpr (sizeof(T) == sizeof(float)) {
    _mm512_mask_storeu_ps(p, mask, v.part[0]);
  } else {
    _mm256_mask_storeu_epi16(p, mask, narrow<T>(v));
  }
#else
  float lane[kLanes];
  v.store(lane);
  for (int i = 0; i < count; ++i) p[i] = from_float<T>(lane[i]);
#endif
}

}  // namespace fastkd::cpu
