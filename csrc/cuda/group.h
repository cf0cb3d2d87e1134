// SPDX-License-Identifier: Apache-2.0
// Threads that share a row, and how their sums become one. All rules of divergence stand here:
//
// * Every function is called by all threads of the block, whatever their row is or lacks.
// * Shuffles name all lanes; a row that has fewer lanes than a warp shuffles within its own.
// * A kernel never returns early, unless a whole block does, and at its beginning.
//
// A row's threads first agree on maxima within a warp, sum relative to them, and then merge the
// warps' sums (Parts) over one block barrier, and the blocks' over one cluster barrier.
#pragma once

#include "core/math.h"
#include "cuda/arena.h"

namespace fastkd::cuda {

constexpr int kMaxParts = 32;  // warps of a block, blocks of a cluster: one lane each

// `lanes` (a power of two) neighbours exchange; all get the same bits.
__device__ __forceinline__ float lanes_max(float x, int lanes) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    if (distance < lanes) x = max(x, __shfl_xor_sync(kAllLanes, x, distance));
  }
  return x;
}

template <class Number>
__device__ __forceinline__ Number lanes_sum(Number x, int lanes) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    if (distance < lanes) x = x + __shfl_xor_sync(kAllLanes, x, distance);
  }
  return x;
}

// The sums of some classes of a row.
template <class Loss>
struct Part {
  typename Loss::template State<float> state;
  float classes;  // how many
};

// Sums of `count` parts in shared memory; every lane of the warp gets the same bits.
template <class Loss>
__device__ __forceinline__ Part<Loss> combine_parts(const typename Loss::Params& params,
                                                    const Part<Loss>* parts, int count) {
  int lanes = 1;  // that hold a part: enough of them, and a power of two
  while (lanes < count) lanes *= 2;
  Part<Loss> mine{Loss::start(kLowest, kLowest), 0.0f};
  if (lane_index() % lanes < count) mine = parts[lane_index() % lanes];
  const float max_student = lanes_max(mine.state.max_student, lanes);
  const float max_teacher = lanes_max(mine.state.max_teacher, lanes);
  const auto sum = [&](float x) { return lanes_sum(x, lanes); };
  const auto rebased = Loss::rebase(params, mine.state, max_student, max_teacher, mine.classes);
  return {Loss::across(params, rebased, max_student, max_teacher, sum),
          Loss::wants_logits(params) ? sum(mine.classes) : 0.0f};
}

enum class Scope { kLanes, kWarp, kBlock, kCluster };

template <Scope kScope>
constexpr bool kWithinWarp = kScope == Scope::kLanes || kScope == Scope::kWarp;

// The threads of one row. `join` turns the sums of a warp's lanes into the row's.
template <Scope kScope>
class Group;

// Rows within a warp: no memory is shared, and a warp's sums are the row's.
class GroupWithinWarp {
 public:
  template <class Loss>
  struct Exchange {
    __host__ __device__ __forceinline__ explicit Exchange(Arena&) {}
  };

  __device__ __forceinline__ explicit GroupWithinWarp(int lanes)
      : rank(lane_index() % lanes),
        row(block_index() * (block_threads() / lanes) + thread_index() / lanes) {}

  static __device__ __forceinline__ void begin() {}
  // What the threads of a row have read or written is done.
  static __device__ __forceinline__ void meet() { __syncwarp(); }

  template <class Loss>
  __device__ __forceinline__ auto join(const typename Loss::Params&, const Part<Loss>& part,
                                       const Exchange<Loss>&) const {
    return part.state;
  }

  const int rank;
  const int64_t row;
  static constexpr int block = 0, blocks = 1;  // of the row
};

// Shared memory of a row's sums, and of those of the second visit where a loss makes one.
template <class Loss, Scope kScope>
struct Exchanges {
  using Exchange = typename Group<kScope>::template Exchange<Loss>;
  Exchange sums, refined;

  __host__ __device__ __forceinline__ explicit Exchanges(Arena& arena)
      : sums(arena), refined(Loss::kRefines ? Exchange(arena) : sums) {}
};

template <>
class Group<Scope::kLanes> : public GroupWithinWarp {
 public:
  __device__ __forceinline__ explicit Group(int lanes)
      : GroupWithinWarp(lanes), lanes(lanes), size(lanes) {}

  const int lanes;  // of a warp that share a row
  const int size;
};

template <>
class Group<Scope::kWarp> : public GroupWithinWarp {
 public:
  __device__ __forceinline__ explicit Group(int) : GroupWithinWarp(kWarp) {}

  static constexpr int lanes = kWarp, size = kWarp;
};

template <>
class Group<Scope::kBlock> {
 public:
  template <class Loss>
  struct Exchange {
    Part<Loss>* warps;
    __host__ __device__ __forceinline__ explicit Exchange(Arena& arena)
        : warps(arena.template take<Part<Loss>>(kMaxParts)) {}
  };

  __device__ __forceinline__ explicit Group(int)
      : rank(thread_index()), size(block_threads()), row(block_index()) {}

  static __device__ __forceinline__ void begin() {}
  static __device__ __forceinline__ void meet() { __syncthreads(); }

  template <class Loss>
  __device__ __forceinline__ auto join(const typename Loss::Params& params, const Part<Loss>& part,
                                       const Exchange<Loss>& exchange) const {
    if (lane_index() == 0) exchange.warps[warp_index()] = part;
    __syncthreads();
    return combine_parts<Loss>(params, exchange.warps, size / kWarp).state;
  }

  static constexpr int lanes = kWarp;
  const int rank, size;
  const int64_t row;
  static constexpr int block = 0, blocks = 1;
};

template <>
class Group<Scope::kCluster> {
 public:
  template <class Loss>
  struct Exchange {
    Part<Loss>*warps, *peers;
    __host__ __device__ __forceinline__ explicit Exchange(Arena& arena)
        : warps(arena.template take<Part<Loss>>(kMaxParts)),
          peers(arena.template take<Part<Loss>>(kMaxParts)) {}
  };

  __device__ __forceinline__ explicit Group(int cluster)
      : rank(thread_index()),
        size(block_threads()),
        row(static_cast<uint32_t>(block_index()) / static_cast<uint32_t>(cluster)),
        block(cluster_rank()),
        blocks(cluster) {}

  // A block may write into another's shared memory once that one runs.
  static __device__ __forceinline__ void begin() { arrive_cluster_relaxed(); }

  template <class Loss>
  __device__ __forceinline__ auto join(const typename Loss::Params& params, const Part<Loss>& part,
                                       const Exchange<Loss>& exchange) const {
    if (lane_index() == 0) exchange.warps[warp_index()] = part;
    __syncthreads();
    wait_cluster();
    if (warp_index() == 0) {
      const Part<Loss> mine = combine_parts<Loss>(params, exchange.warps, size / kWarp);
      if (lane_index() < blocks) *peer_shared(exchange.peers + block, lane_index()) = mine;
      __syncwarp();  // a warp arrives as one
    }
    arrive_cluster();
    wait_cluster();
    return combine_parts<Loss>(params, exchange.peers, blocks).state;
  }

  static constexpr int lanes = kWarp;
  const int rank, size;
  const int64_t row;
  const int block, blocks;
};

}  // namespace fastkd::cuda
