// SPDX-License-Identifier: Apache-2.0
// Tables over all pairs of a batch: squared distances, or inner products.
#pragma once

#include "cuda/pair_block.h"
#include "losses/rkd_angle_loss.h"
#include "losses/rkd_distance_loss.h"

namespace fastkd::cuda {

// Of both sides. Only [rows, rows] is written; symmetric to the last bit.
template <class T>
struct PairTables {
  T* student;  // [stride, stride]
  T* teacher;
  int64_t stride;
};

// Of some pairs i < j.
struct SquareCensus {
  double distances = 0.0;  // their sum
  double positive = 0.0;   // how many of them are
  SquareRange range;       // largest: infinity where a square is not finite

  __device__ __forceinline__ void add(const SquareCensus& other) {
    distances += other.distances;
    positive += other.positive;
    if (other.range.smallest < range.smallest) range.smallest = other.range.smallest;
    if (other.range.largest > range.largest) range.largest = other.range.largest;
  }
};

// Over all threads of a block, in a fixed order; every thread gets it. `warps`: as of block_sum.
__device__ __forceinline__ SquareCensus block_census(SquareCensus mine, SquareCensus* warps) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    SquareCensus other;
    other.distances = __shfl_xor_sync(kAllLanes, mine.distances, distance);
    other.positive = __shfl_xor_sync(kAllLanes, mine.positive, distance);
    other.range.smallest = __shfl_xor_sync(kAllLanes, mine.range.smallest, distance);
    other.range.largest = __shfl_xor_sync(kAllLanes, mine.range.largest, distance);
    mine.add(other);
  }
  if (lane_index() == 0) warps[warp_index()] = mine;
  __syncthreads();
  SquareCensus census;
  for (int warp = 0; warp < kPairWarps; ++warp) census.add(warps[warp]);
  return census;
}

int64_t census_tiles(int64_t rows);

// Squared distances; 0 on the diagonal, NaN for what is not finite. census: [2,
// census_tiles(rows)], the student's first.
template <class T>
void launch_squares(Launcher& launch, const PairArgs& args, const PairTables<T>& tables,
                    const RkdDistance& distance, SquareCensus* census);

// Inner products, and inverse_norm of the rows: [rows] of each side.
void launch_products(Launcher& launch, const PairArgs& args, const PairTables<double>& tables,
                     double eps, double* student_inverses, double* teacher_inverses);

}  // namespace fastkd::cuda
