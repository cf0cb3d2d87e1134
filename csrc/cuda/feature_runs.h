// SPDX-License-Identifier: Apache-2.0
// How the threads of a block share features that are read in place, and what they do with vectors
// of them. Shared by the maps and their gradient.
#pragma once

#include "core/logit_args.h"
#include "cuda/group.h"
#include "cuda/vector_memory.h"

namespace fastkd::cuda {

constexpr int kFeatureThreads = 256;

// Blocks of a multiprocessor: 80 registers a thread. Left alone, the compiler aims at more blocks
// and spills.
constexpr int kFeatureBlocks = 3;

// Channels apart: vectors of neighbouring positions that a block takes, 256 bytes of each channel.
// More would leave most multiprocessors idle on small maps.
constexpr int kPositionLanes = 16;

// Channels together: positions that lanes take one after another.
constexpr int kPositionTurns = 4;

// The smallest power of two of lanes whose vectors hold `count` elements, `limit` at most.
template <class T>
int lanes_for(int64_t count, int limit) {
  int lanes = 1;
  while (lanes < limit && lanes * kWidth<T> < count) lanes *= 2;
  return lanes;
}

// Whether all runs of neighbours begin at multiples of 16 bytes.
inline bool is_aligned(const LogitView& view, bool along_positions) {
  const int64_t step = along_positions ? view.stride_class : view.stride_inner;
  const auto multiple = [&](int64_t stride) { return stride * element_size(view.dtype) % 16 == 0; };
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && multiple(view.stride_outer) &&
         multiple(step);
}

inline uint32_t parts(int64_t count, int64_t each) {
  return static_cast<uint32_t>((count + each - 1) / each);
}

// Where a thread of a block stands.
struct FeaturePlace {
  int64_t sample;
  int64_t tile;
  int lane, slice, slices;

  __device__ __forceinline__ FeaturePlace(uint32_t tiles, int lanes)
      : sample(static_cast<uint32_t>(block_index()) / tiles),
        tile(static_cast<uint32_t>(block_index()) % tiles),
        lane(thread_index() & (lanes - 1)),
        slice(
            static_cast<int>(static_cast<uint32_t>(thread_index()) / static_cast<uint32_t>(lanes))),
        slices(kFeatureThreads / lanes) {}
};

template <class T>
constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));

// turn(i) for the four words of vectors. A long one is compiled once: every time for word 0, and
// next() moves the other words down and word 0 to the end.
template <class Functor, class Turn, class Next>
__device__ __forceinline__ void for_words(const Functor&, const Turn& turn, const Next& next) {
  if constexpr (Functor::kLong) {
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      turn(0);
      next();
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) turn(i);
  }
}

__device__ __forceinline__ void rotate(Words& words) {
  const uint32_t first = words.word[0];
#pragma unroll
  for (int i = 0; i < 3; ++i) words.word[i] = words.word[i + 1];
  words.word[3] = first;
}

template <class T>
__device__ __forceinline__ void rotate_by_word(float (&x)[kWidth<T>]) {
  constexpr int kBy = kPerWord<T>;
  float first[kBy];
#pragma unroll
  for (int i = 0; i < kBy; ++i) first[i] = x[i];
#pragma unroll
  for (int i = 0; i + kBy < kWidth<T>; ++i) x[i] = x[i + kBy];
#pragma unroll
  for (int i = 0; i < kBy; ++i) x[kWidth<T> - kBy + i] = first[i];
}

template <class T>
__device__ __forceinline__ void unpack_word(uint32_t word, float (&x)[kPerWord<T>]) {
  if constexpr (sizeof(T) == 4) {
    x[0] = bit_cast<float>(word);
  } else {
    const float2 pair = unpack_pair<T>(word);
    x[0] = pair.x;
    x[1] = pair.y;
  }
}

}  // namespace fastkd::cuda
