// SPDX-License-Identifier: Apache-2.0
// The attention map of one tensor: the mean over channels of |x|^p at every position.
//
// Which thread adds which channels depends on the shape of a sample and on the layout alone. A
// thread's sums run over at most 64 values before they join a total; then they meet in a tree.
#pragma once

#include "cuda/feature_runs.h"
#include "losses/attention_transfer_loss.h"

namespace fastkd::cuda {

// Values that a thread sums before they join a total.
constexpr int kMapRun = 64;

// A power of two of lanes share each run of neighbours.
struct MapCall {
  LogitView x;
  int64_t positions;
  uint32_t tiles;  // blocks of a sample
  int lanes;
  bool aligned;  // every run begins at a multiple of 16 bytes
  float* map;    // [samples, positions]
};

// As load_vector, with 0 in place of what the row lacks.
template <class T>
__device__ __forceinline__ Words load_or_zero(const T* row, int64_t first, int64_t count,
                                              bool aligned) {
  Words words = load_vector(row, first, count, aligned);
  const int64_t left = count - first;
  if (left < kWidth<T>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        if (i >= left) words.word[i] = 0;
      } else {
        if (2 * i >= left) words.word[i] = 0;
        if (2 * i + 1 >= left) words.word[i] &= 0xffffu;
      }
    }
  }
  return words;
}

// Adds the powers of some vectors to sums, element by element, in pairs.
template <class T, class Power, int kVectors>
__device__ __forceinline__ void add_powers(const Power& power, Words (&words)[kVectors],
                                           float (&sums)[kWidth<T>]) {
  static_assert(kVectors % 2 == 0, "vectors are added in pairs");
  with_functor(power, [&](const auto& functor) {
    const auto turn = [&](int word) {
      float all[kPerWord<T>] = {};
#pragma unroll
      for (int v = 0; v < kVectors; v += 2) {
        float a[kPerWord<T>], b[kPerWord<T>];
        unpack_word<T>(words[v].word[word], a);
        unpack_word<T>(words[v + 1].word[word], b);
#pragma unroll
        for (int i = 0; i < kPerWord<T>; ++i) {
          all[i] += functor.value(a[i]) + functor.value(b[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kPerWord<T>; ++i) sums[word * kPerWord<T> + i] += all[i];
    };
    for_words(functor, turn, [&] {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) rotate(words[v]);
      rotate_by_word<T>(sums);
    });
  });
}

// Channels apart: a thread adds those of its slice at a vector of positions.
template <class T, class Power>
__global__ void __launch_bounds__(kFeatureThreads, kFeatureBlocks)
    map_along_positions(const MapCall call, const Power power) {
  constexpr int kPerVector = kWidth<T>;
  constexpr int kLoads = 4;
  Arena arena(shared_memory());
  float* const sums = arena.take<float>(kFeatureThreads * kPerVector);
  const FeaturePlace place(call.tiles, call.lanes);
  const int64_t first = (place.tile * call.lanes + place.lane) * kPerVector;
  const T* const x = call.x.template at<const T>(place.sample, 0);
  const int64_t channels = call.x.classes;

  float total[kPerVector] = {};
  for (int64_t begin = place.slice; begin < channels; begin += kMapRun * place.slices) {
    float run[kPerVector] = {};
    int64_t c = begin;
    for (int k = 0; k < kMapRun && c < channels; k += kLoads) {
      Words words[kLoads];
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        words[load] = load_or_zero(x + c * call.x.stride_class, first,
                                   c < channels ? call.positions : 0, call.aligned);
        c += place.slices;
      }
      add_powers<T>(power, words, run);
    }
#pragma unroll
    for (int i = 0; i < kPerVector; ++i) total[i] += run[i];
  }

  for (int half = place.slices / 2; half > 0; half /= 2) {
    const bool holds = place.slice < 2 * half, adds = place.slice < half;
#pragma unroll
    for (int i = 0; i < kPerVector; ++i) {
      if (holds) sums[i * kFeatureThreads + thread_index()] = total[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPerVector; ++i) {
      if (adds) total[i] += sums[i * kFeatureThreads + thread_index() + half * call.lanes];
    }
  }
#pragma unroll
  for (int i = 0; i < kPerVector; ++i) {
    if (place.slice == 0 && first + i < call.positions) {
      call.map[place.sample * call.positions + first + i] = total[i] / static_cast<float>(channels);
    }
  }
}

inline int64_t map_along_positions_shared(int per_vector) {
  Arena arena(nullptr);
  arena.take<float>(kFeatureThreads * per_vector);
  return arena.bytes();
}

// Channels together: the lanes of a position add its vectors, then their sums.
template <class T, class Power>
__global__ void __launch_bounds__(kFeatureThreads, kFeatureBlocks)
    map_along_channels(const MapCall call, const Power power) {
  constexpr int kPerVector = kWidth<T>;
  constexpr int kLoads = 2;
  const FeaturePlace place(call.tiles, call.lanes);
  const int64_t channels = call.x.classes;
  for (int k = 0; k < kPositionTurns; ++k) {
    const int64_t position = (place.tile * kPositionTurns + k) * place.slices + place.slice;
    const bool inside = position < call.positions;
    const T* const row = call.x.template at<const T>(place.sample, inside ? position : 0);
    int64_t first = place.lane * kPerVector;
    float total = 0.0f;
    while (inside && first < channels) {
      float run[kPerVector] = {};
      for (int v = 0; v < kMapRun && first < channels; v += kLoads) {
        Words words[kLoads];
#pragma unroll
        for (int load = 0; load < kLoads; ++load) {
          words[load] = load_or_zero(row, first, channels, call.aligned);
          first += call.lanes * kPerVector;
        }
        add_powers<T>(power, words, run);
      }
#pragma unroll
      for (int width = kPerVector / 2; width > 0; width /= 2) {
#pragma unroll
        for (int i = 0; i < width; ++i) run[i] += run[i + width];
      }
      total += run[0];
    }
    const float sum = lanes_sum(total, call.lanes);
    if (inside && place.lane == 0) {
      call.map[place.sample * call.positions + position] = sum / static_cast<float>(channels);
    }
  }
}

}  // namespace fastkd::cuda
