// SPDX-License-Identifier: Apache-2.0
// A row in vectors of 16 bytes, at any alignment.
//
// Thread and vector of a class depend on its place in the row alone, never on the row's address:
// the same logits give the same bits wherever they lie. Rows that do not start at a multiple of 16
// bytes (odd class counts, `logits[:, :-1]`) are still moved by aligned accesses of 16 bytes: two
// neighbours are read and shifted together, and a store takes what it lacks from the lane before.
// Only the ends of a row move element by element. Nothing outside a row is touched.
#pragma once

#include "core/math.h"
#include "cuda/device.h"

namespace fastkd::cuda {

template <class T>
constexpr int kWidth = 16 / static_cast<int>(sizeof(T));

// -inf: what stands where a row has no class.
template <class T>
constexpr uint32_t kPadding = 0xff800000u;
template <>
inline constexpr uint32_t kPadding<BFloat16> = 0xff80ff80u;
template <>
inline constexpr uint32_t kPadding<Float16> = 0xfc00fc00u;

template <class T>
__device__ __forceinline__ void unpack(const Words& words, float (&x)[kWidth<T>]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      x[i] = bit_cast<float>(words.word[i]);
    } else {
      const float2 pair = unpack_pair<T>(words.word[i]);
      x[2 * i] = pair.x;
      x[2 * i + 1] = pair.y;
    }
  }
}

template <class T>
__device__ __forceinline__ Words pack(const float (&x)[kWidth<T>]) {
  Words words;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words.word[i] = bit_cast<uint32_t>(x[i]);
    } else {
      words.word[i] = pack_pair<T>(x[2 * i], x[2 * i + 1]);
    }
  }
  return words;
}

// Puts -inf in the place of element `c`, if the vector has it.
template <class T>
__device__ __forceinline__ void hide(Words& words, int c) {
  if (c < 0 || c >= kWidth<T>) return;
  float x[kWidth<T>];
  unpack<T>(words, x);
#pragma unroll
  for (int i = 0; i < kWidth<T>; ++i) x[i] = i == c ? -INFINITY : x[i];
  words = pack<T>(x);
}

// The largest of some vectors, kLowest at least; NaN is dropped.
template <class T, int kVectors>
__device__ __forceinline__ float largest(const Words (&vectors)[kVectors]) {
  if constexpr (sizeof(T) == 4) {
    float maximum = kLowest;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < 4; ++i) maximum = max(bit_cast<float>(vectors[v].word[i]), maximum);
    }
    return maximum;
  } else {
    uint32_t pair = kPadding<T>;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < 4; ++i) pair = max_pair<T>(vectors[v].word[i], pair);
    }
    const float2 both = unpack_pair<T>(pair);
    return max(both.x, max(both.y, kLowest));
  }
}

template <class T>
__device__ __forceinline__ int misalignment(const T* data) {  // bytes past a multiple of 16
  return static_cast<int>(reinterpret_cast<uintptr_t>(data) & 15u);
}

// 16 bytes that start `bytes` (0 to 15, a multiple of T's size) into low:high.
template <class T>
__device__ __forceinline__ Words shift_together(const Words& low, const Words& high, int bytes) {
  uint32_t w[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    w[i] = low.word[i];
    w[4 + i] = high.word[i];
  }
  const bool by_two = (bytes & 8) != 0, by_one = (bytes & 4) != 0;
#pragma unroll
  for (int i = 0; i < 6; ++i) w[i] = by_two ? w[i + 2] : w[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) w[i] = by_one ? w[i + 1] : w[i];
  if constexpr (sizeof(T) == 4) return {{w[0], w[1], w[2], w[3]}};
  const uint32_t bits = (bytes & 2) * 8;
  return {{funnel_right(w[0], w[1], bits), funnel_right(w[1], w[2], bits),
           funnel_right(w[2], w[3], bits), funnel_right(w[3], w[4], bits)}};
}

// Appends the bits of an element at the low end; what was there moves up.
template <class T>
__device__ __forceinline__ void push_low(Words& words, uint32_t bits) {
  uint32_t (&w)[4] = words.word;
  if constexpr (sizeof(T) == 4) {
    w[3] = w[2], w[2] = w[1], w[1] = w[0], w[0] = bits;
  } else {
    w[3] = funnel_right(w[2], w[3], 16);
    w[2] = funnel_right(w[1], w[2], 16);
    w[1] = funnel_right(w[0], w[1], 16);
    w[0] = (w[0] << 16) | bits;
  }
}

// Takes the lowest element away; the rest moves down.
template <class T>
__device__ __forceinline__ uint32_t pop_low(Words& words) {
  uint32_t (&w)[4] = words.word;
  const uint32_t low = w[0];
  if constexpr (sizeof(T) == 4) {
    w[0] = w[1], w[1] = w[2], w[2] = w[3];
    return low;
  } else {
    w[0] = funnel_right(w[0], w[1], 16);
    w[1] = funnel_right(w[1], w[2], 16);
    w[2] = funnel_right(w[2], w[3], 16);
    w[3] >>= 16;
    return low & 0xffffu;
  }
}

template <class T>
__device__ __forceinline__ uint32_t bits_of(T x) {
  if constexpr (sizeof(T) == 4) {
    return bit_cast<uint32_t>(x);
  } else {
    return x.bits;
  }
}

template <class T>
__device__ __forceinline__ T element_of(uint32_t bits) {
  if constexpr (sizeof(T) == 4) {
    return bit_cast<T>(bits);
  } else {
    return T{static_cast<uint16_t>(bits)};
  }
}

// Classes [first, first + width) of a row of `count`; -inf beyond its end.
template <class T, class Index>
__device__ __forceinline__ Words load_vector(const T* row, Index first, Index count, bool aligned) {
  constexpr int kPerVector = kWidth<T>;
  const int offset = aligned ? 0 : misalignment(row);
  if (offset == 0) {
    if (first + kPerVector <= count) return load_words(row + first);
  } else if (first >= kPerVector && first + 2 * kPerVector <= count) {
    const char* const block = reinterpret_cast<const char*>(row + first) - offset;
    return shift_together<T>(load_words(block), load_words(block + 16), offset);
  }
  const uint32_t pad = kPadding<T>;
  Words words{{pad, pad, pad, pad}};
  if (first < count) {
#pragma unroll 1
    for (int i = kPerVector - 1; i >= 0; --i) {
      const bool inside = first + i < count;
      push_low<T>(words, inside ? bits_of(row[first + i]) : (sizeof(T) == 4 ? pad : pad & 0xffffu));
    }
  }
  return words;
}

// Stores elements [begin, end) of a vector that starts at class `first`.
template <class T, class Index>
__device__ __forceinline__ void store_elements(T* row, Index first, int begin, int end,
                                               Words words) {
#pragma unroll 1
  for (int i = 0; i < end; ++i) {
    const uint32_t bits = pop_low<T>(words);
    if (i >= begin) row[first + i] = element_of<T>(bits);
  }
}

// Classes [first, first + width) of a row of `count`. Lane `rank` of `lanes` holds the vector
// behind that of the lane before; all lanes of the warp call together.
template <class T, class Index>
__device__ __forceinline__ void store_vector(T* row, Index first, Index count, bool aligned,
                                             const Words& words, int rank, int lanes) {
  constexpr int kPerVector = kWidth<T>;
  const Index left = count - first;
  const int valid = left < 0 ? 0 : left < kPerVector ? static_cast<int>(left) : kPerVector;
  if (aligned) {
    if (valid == kPerVector) {
      store_words(row + first, words);
    } else {
      store_elements(row, first, 0, valid, words);
    }
    return;
  }
  Words before;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    before.word[i] = __shfl_up_sync(kAllLanes, words.word[i], 1, kWarp);
  }
  const int offset = misalignment(row);  // the same at every vector of the row
  // Elements in front of the next multiple of 16 bytes: stored together with those before them.
  const int head = kPerVector - offset / static_cast<int>(sizeof(T));
  const auto complete = [&](int lane, Index valid_there) {
    return lane > 0 && valid_there >= head;
  };
  int stored_from = 0;
  if (offset == 0 && valid == kPerVector) {
    store_words(row + first, words);
    return;
  }
  if (offset != 0 && complete(rank, valid)) {
    char* const block = reinterpret_cast<char*>(row + first) - offset;
    store_words(block, shift_together<T>(before, words, 16 - offset));
    stored_from = head;
  }
  const bool next_takes_rest =
      offset != 0 && rank + 1 < lanes && complete(rank + 1, left - kPerVector);
  const int stored_to = next_takes_rest && head < valid ? head : valid;
  store_elements(row, first, stored_from, stored_to, words);
}

}  // namespace fastkd::cuda
