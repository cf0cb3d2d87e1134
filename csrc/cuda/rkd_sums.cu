// SPDX-License-Identifier: Apache-2.0
#include "cuda/rkd_sums.h"

namespace fastkd::cuda {

namespace {

__global__ void __launch_bounds__(kPairThreads, kLightBlocks)
    summarize(const RkdMemory memory, const int64_t tiles, const double eps) {
  Arena arena(shared_memory());
  SquareCensus* const warps = arena.take<SquareCensus>(2 * kPairWarps);
  SquareRange* const ranges = arena.take<SquareRange>(2);  // of thread 0
  RkdSummary* const summary = memory.summary;
  double poison = 0.0;
  for (int side = 0; side < 2; ++side) {
    SquareCensus mine;
    for (int64_t tile = thread_index(); tile < tiles; tile += kPairThreads) {
      mine.add(memory.census[side * tiles + tile]);
    }
    const SquareCensus all = block_census(mine, warps + side * kPairWarps);
    if (!(all.range.largest <= DBL_MAX)) poison = static_cast<double>(NAN);
    if (thread_index() == 0) {
      ranges[side] = all.range;
      summary->form.grids[side] = SquareGrid::covering(all.range.largest, eps);
      summary->inverse_means[side] = all.distances > 0.0 ? all.positive / all.distances : 0.0;
      if (side == 0) summary->inverse_pairs = all.positive > 0.0 ? 0.5 / all.positive : 0.0;
    }
  }
  if (thread_index() == 0) {
    summary->form.wide = wants_wide(ranges[0], ranges[1]);
    summary->poison = poison;
  }
}

// By all threads of a block; nullptr: 0.
__device__ __forceinline__ double sum_of(const double* numbers, int64_t count, double* warps) {
  double mine = 0.0;
  for (int64_t i = thread_index(); numbers != nullptr && i < count; i += kPairThreads) {
    mine += numbers[i];
  }
  return block_sum(mine, warps);
}

__global__ void __launch_bounds__(kPairThreads, kLightBlocks)
    sum_rkd(const RkdMemory memory, const TripletPlan ends, const RkdFactors factors,
            float* const loss) {
  Arena arena(shared_memory());
  double* const warps = arena.take<double>(4 * kPairWarps);
  const double distances = sum_of(memory.distance_values, memory.rows, warps);
  const double slopes = sum_of(memory.distance_slopes, memory.rows, warps + kPairWarps);
  const int64_t parts = memory.summary->form.wide ? ends.tiles : ends.blocks();
  const double angles = sum_of(memory.angles.values, parts, warps + 2 * kPairWarps);
  const double mismatches = sum_of(memory.mismatches, memory.rows, warps + 3 * kPairWarps);
  if (thread_index() == 0) {
    RkdSummary* const summary = memory.summary;
    // Angles were summed over i < k, the loss has both orders.
    const double both_orders = 2.0 * angles + mismatches * factors.angle_of_nothing;
    *loss = static_cast<float>(factors.distance * distances + factors.angle * both_orders +
                               summary->poison);
    summary->mean_slope = slopes * summary->inverse_pairs;
  }
}

}  // namespace

void launch_summary(Launcher& launch, const RkdMemory& memory, double eps) {
  Arena arena(nullptr);
  arena.take<SquareCensus>(2 * kPairWarps);
  arena.take<SquareRange>(2);
  launch("summarize", summarize, {1, kPairThreads, 1, arena.bytes()}, memory,
         census_tiles(memory.rows), eps);
}

void launch_rkd_sum(Launcher& launch, const RkdMemory& memory, const RkdFactors& factors,
                    float* loss) {
  Arena arena(nullptr);
  arena.take<double>(4 * kPairWarps);
  launch("sum_rkd", sum_rkd, {1, kPairThreads, 1, arena.bytes()}, memory, plan_ends(memory.rows),
         factors, loss);
}

}  // namespace fastkd::cuda
