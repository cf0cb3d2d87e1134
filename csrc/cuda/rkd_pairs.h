// SPDX-License-Identifier: Apache-2.0
// What rkd_loss does with single pairs: the loss of their distances (distance_terms), and how hard
// they pull their examples (pair_pulls). A block a row of the tables.
#pragma once

#include "cuda/rkd_memory.h"

namespace fastkd::cuda {

template <class C, class T>
__global__ void __launch_bounds__(kPairThreads, kLightBlocks)
    distance_terms(const C criterion, const PairTables<T> squares, const RkdMemory memory) {
  Arena arena(shared_memory());
  double* const warps = arena.take<double>(2 * kPairWarps);
  const double by_student = memory.summary->inverse_means[0];
  const double by_teacher = memory.summary->inverse_means[1];
  const int64_t i = block_index();
  double values = 0.0, slopes = 0.0;
  for (int64_t j = thread_index(); j < memory.rows; j += kPairThreads) {
    const int64_t at = i * squares.stride + j;
    double slope = 0.0;
    if (i != j) {
      const auto distance = [&](const T* table) {
        return memory.distance.distance(static_cast<double>(table[at]));
      };
      const double student = distance(squares.student) * by_student;
      const double difference = student - distance(squares.teacher) * by_teacher;
      slope = criterion.slope(difference);
      values += criterion.value(slope, difference);
      slopes += slope * student;
    }
    if (memory.pulls != nullptr) memory.pulls[at] = static_cast<float>(slope);
  }
  values = block_sum(values, warps);
  slopes = block_sum(slopes, warps + kPairWarps);
  if (thread_index() == 0) {
    memory.distance_values[i] = values;
    memory.distance_slopes[i] = slopes;
  }
}

// Sums of angles, and the slopes they make: before the factor, in units of 1 / unit.
template <class Number>
struct AngleSlopes {
  const SplitTables& split;
  const Number *ends, *across, *along;  // [splits, stride, stride]
  int64_t end_splits, vertex_splits;

  __device__ __forceinline__ double sum(const Number* table, int64_t splits, int64_t row,
                                        int64_t column) const {
    double sum = 0.0;
#pragma unroll 1  // else registers spill
    for (int64_t s = 0; s < splits; ++s) {
      sum += static_cast<double>(table[(s * split.stride + row) * split.stride + column]);
    }
    return sum;
  }

  // dloss/dS of the arm from `vertex` to `neighbour`.
  __device__ __forceinline__ double arm(int64_t vertex, int64_t neighbour) const {
    return arm_slope(sum(across, vertex_splits, vertex, neighbour),
                     sum(along, vertex_splits, vertex, neighbour),
                     static_cast<double>(split.row(kStudentInverse, vertex)[neighbour]));
  }

  // dloss/dS of a pair as arms and as ends, to the last bit that of (j, i).
  __device__ __forceinline__ double pair(int64_t i, int64_t j) const {
    const int64_t first = i < j ? i : j, second = i < j ? j : i;
    return arm(first, second) + arm(second, first) - sum(ends, end_splits, first, second);
  }
};

// S_ij stands at (i, j) and (j, i) and moves x_i by 2 (x_i - x_j): -4 times its slope at (i, j).
template <class T>
__global__ void __launch_bounds__(kPairThreads, kLightBlocks)
    pair_pulls(const PairTables<T> squares, const RkdMemory memory, const RkdFactors factors,
               const int64_t end_splits, const int64_t vertex_splits) {
  const RkdSummary& summary = *memory.summary;
  const bool wide = sizeof(T) == sizeof(double) && summary.form.wide;
  const double distance_factor = -4.0 * factors.distance * summary.inverse_means[0];
  const double angle_factor = summary.form.grids[0].of_slopes(-4.0 * factors.angle);
  const AngleSums& sums = memory.angles;
  const AngleSlopes<float> angles{memory.split, sums.ends,  sums.across,
                                  sums.along,   end_splits, vertex_splits};
  const WideSums wide_sums = WideSums::in(memory.split, sums);
  const AngleSlopes<double> wide_angles{
      memory.split, wide_sums.ends, wide_sums.across, wide_sums.along, 1, 1};
  const int64_t i = block_index();
  for (int64_t j = thread_index(); j < memory.rows; j += kPairThreads) {
    const int64_t at = i * squares.stride + j;
    double pull = 0.0;
    if (i != j) {
      pull = summary.poison;
      if (factors.distance != 0.0) {
        const double d = memory.distance.distance(static_cast<double>(squares.student[at]));
        const double slope = static_cast<double>(memory.pulls[at]) - summary.mean_slope;
        pull += distance_factor * slope * memory.distance.slope(d);
      }
      if (factors.angle != 0.0) {
        pull += angle_factor * (wide ? wide_angles.pair(i, j) : angles.pair(i, j));
      }
    }
    if constexpr (sizeof(T) == sizeof(double)) {
      if (wide) squares.teacher[at] = pull;
    }
    if (!wide) memory.pulls[at] = static_cast<float>(pull);
  }
}

template <class C, class T>
void launch_distances(Launcher& launch, const C& criterion, const PairTables<T>& squares,
                      const RkdMemory& memory) {
  Arena arena(nullptr);
  arena.take<double>(2 * kPairWarps);
  launch("distance_terms", distance_terms<C, T>, {memory.rows, kPairThreads, 1, arena.bytes()},
         criterion, squares, memory);
}

template <class T>
void launch_pulls(Launcher& launch, const PairTables<T>& squares, const RkdMemory& memory,
                  const RkdFactors& factors) {
  launch("pair_pulls", pair_pulls<T>, {memory.rows, kPairThreads, 1, 0}, squares, memory, factors,
         plan_ends(memory.rows).splits, plan_vertices(memory.rows).splits);
}

}  // namespace fastkd::cuda
