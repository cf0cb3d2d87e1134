// SPDX-License-Identifier: Apache-2.0
// What the blocks have in common that work on pairs and triplets of a batch's examples.
//
// A table over all pairs is [stride, stride], stride = pair_stride(rows): row i holds the pairs
// (i, 0), (i, 1), ..., and starts at a multiple of 128 bytes.
#pragma once

#include "cuda/group.h"
#include "cuda/launch.h"

namespace fastkd::cuda {

constexpr int kPairThreads = 128;  // of every block
// Blocks at once on a multiprocessor: of those that keep many sums, and of the others. The second
// is as much as sm_75 has room for, and leaves 64 registers; without a number some kernels spill.
constexpr int kPairBlocks = 4;
constexpr int kLightBlocks = 8;
constexpr int kPairWarps = kPairThreads / kWarp;
constexpr int kTileSide = 32;

inline int64_t pair_stride(int64_t rows) { return (rows + kTileSide - 1) / kTileSide * kTileSide; }

// Tiles (row <= column) of the upper triangle of a table that has `tiles` in a row.
FASTKD_HOST_DEVICE int64_t upper_tiles(int64_t tiles) { return tiles * (tiles + 1) / 2; }

// How the threads of a block share a tile of kTileSide x kTileSide sums: 2 in its first index, 4 in
// its second each.
constexpr int kFirsts = 2, kSeconds = 4;
constexpr int kAcross = kTileSide / kSeconds;  // threads
static_assert(kTileSide / kFirsts * kAcross == kPairThreads);

__device__ __forceinline__ int first_of_thread() { return thread_index() / kAcross * kFirsts; }
__device__ __forceinline__ int second_of_thread() { return thread_index() % kAcross * kSeconds; }

struct TileIndex {
  int64_t row, column;
};

// The tiles in the order (0, 0), (0, 1), (1, 1), (0, 2), ...
__device__ __forceinline__ TileIndex upper_tile(int64_t index) {
  int64_t column = static_cast<int64_t>((::sqrt(8.0 * static_cast<double>(index) + 1.0) - 1.0) / 2);
  if (upper_tiles(column) > index) --column;
  if (upper_tiles(column + 1) <= index) ++column;
  return {index - upper_tiles(column), column};
}

// Neighbours in memory that one instruction moves, or two; aligned to their size, at most 16 bytes.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Run {
  T at[kCount];
};

template <int kCount, class T>
__device__ __forceinline__ Run<T, kCount> load_run(const T* data) {
#if !defined(__CUDACC__)
  emulator::check_aligned(data, alignof(Run<T, kCount>));
#endif
  return *reinterpret_cast<const Run<T, kCount>*>(data);
}

template <int kCount, class T>
__device__ __forceinline__ void store_run(T* data, const Run<T, kCount>& run) {
#if !defined(__CUDACC__)
  emulator::check_aligned(data, alignof(Run<T, kCount>));
#endif
  *reinterpret_cast<Run<T, kCount>*>(data) = run;
}

// A long sum, taken in parts. Of floats it carries along what rounding loses (Kahan 1965); a double
// part goes on without end.
template <class T>
struct LongSum {
  __device__ __forceinline__ void fold(T&) {}
  __device__ __forceinline__ T total(T part) const { return part; }
};

template <>
struct LongSum<float> {
  float sum = 0.0f, lost = 0.0f;

  __device__ __forceinline__ void fold(float& part) {
    const float more = part + lost, next = sum + more;
    lost = more - (next - sum);
    sum = next;
    part = 0.0f;
  }
  __device__ __forceinline__ float total(float part) const { return sum + (part + lost); }
};

// Over all threads of a block, in a fixed order; every thread gets it. `warps`: [kPairWarps] in
// shared memory, of this sum alone.
__device__ __forceinline__ double block_sum(double mine, double* warps) {
  const double sum_of_warp = lanes_sum(mine, kWarp);
  if (lane_index() == 0) warps[warp_index()] = sum_of_warp;
  __syncthreads();
  double sum = 0.0;
  for (int warp = 0; warp < kPairWarps; ++warp) sum += warps[warp];
  return sum;
}

}  // namespace fastkd::cuda
