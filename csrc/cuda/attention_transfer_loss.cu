// SPDX-License-Identifier: Apache-2.0
// Forward: a map of each tensor, the loss and dloss/dmap of each sample, the sum of the losses.
// Nothing of the features' size is stored: attention_transfer_gradient.cu reads them again.
#include "core/attention_maps.h"
#include "core/feature_layout.h"
#include "cuda/attention_map.h"
#include "cuda/launch.h"
#include "kernels.h"
#include "losses/attention_transfer_loss.h"

namespace fastkd {

namespace cuda {
namespace {

constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / kWarp;

struct TwoSums {
  double first, second;
};

// Over all threads of a block, in a fixed order; every thread gets them.
__device__ __forceinline__ TwoSums block_sums(const TwoSums& mine, TwoSums* warps) {
  const TwoSums warp{lanes_sum(mine.first, kWarp), lanes_sum(mine.second, kWarp)};
  if (lane_index() == 0) warps[warp_index()] = warp;
  __syncthreads();
  TwoSums sums{0.0, 0.0};
  for (int i = 0; i < kSampleWarps; ++i) {
    sums.first += warps[i].first;
    sums.second += warps[i].second;
  }
  return sums;
}

// Memory of the block for two sums, one after the other.
struct SampleArena {
  TwoSums *norms, *losses;
  __host__ __device__ __forceinline__ explicit SampleArena(Arena& arena)
      : norms(arena.take<TwoSums>(kSampleWarps)), losses(arena.take<TwoSums>(kSampleWarps)) {}

  static int64_t bytes() {
    Arena arena(nullptr);
    const SampleArena sizes(arena);
    return arena.bytes();
  }
};

struct CompareCall {
  int64_t positions;
  double scale;
  bool with_grad;
  float* student;        // [samples, positions]: the map, then dloss/dmap
  const float* teacher;  // [samples, positions]
  double* losses;        // [samples]
};

// A block a sample.
__global__ void __launch_bounds__(kSampleThreads) compare_maps(const CompareCall call) {
  Arena arena(shared_memory());
  const SampleArena memory(arena);
  float* const student = call.student + block_index() * call.positions;
  const float* const teacher = call.teacher + block_index() * call.positions;
  const auto sums_of = [&](TwoSums* warps, const auto& of) {
    TwoSums mine{0.0, 0.0};
#pragma unroll 1  // the divisions of several turns would not fit the registers
    for (int64_t i = thread_index(); i < call.positions; i += kSampleThreads) {
      const TwoSums term = of(student[i], teacher[i]);
      mine.first += term.first;
      mine.second += term.second;
    }
    return block_sums(mine, warps);
  };
  const TwoSums squares = sums_of(memory.norms, [](float s, float t) {
    const double student_q = s, teacher_q = t;
    return TwoSums{student_q * student_q, teacher_q * teacher_q};
  });
  const AttentionPair pair(squares.first, squares.second);
  const TwoSums sums = sums_of(memory.losses, [&](float s, float t) {
    const double difference = pair.difference(s, t);
    return TwoSums{difference * difference, difference * pair.student(s)};
  });
  if (thread_index() == 0) call.losses[block_index()] = sums.first;
  const int64_t written = call.with_grad ? call.positions : 0;
#pragma unroll 1
  for (int64_t i = thread_index(); i < written; i += kSampleThreads) {
    student[i] = pair.gradient(student[i], teacher[i], sums.second, call.scale);
  }
}

// One block.
__global__ void __launch_bounds__(kSampleThreads)
    sum_sample_losses(const double* const losses, const int64_t samples, const double scale,
                      float* const loss) {
  Arena arena(shared_memory());
  const SampleArena memory(arena);
  TwoSums mine{0.0, 0.0};
  for (int64_t i = thread_index(); i < samples; i += kSampleThreads) mine.first += losses[i];
  const TwoSums sums = block_sums(mine, memory.norms);
  if (thread_index() == 0) *loss = static_cast<float>(sums.first * scale);
}

void launch_map(Launcher& launch, const LogitView& x, const AttentionArgs& args, float* map) {
  const bool along_positions = runs_along_positions(x, args.positions);
  MapCall call{x, args.positions, 0, 0, is_aligned(x, along_positions), map};
  visit(x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    with_two_or_any(args.power, [&](const auto& power) {
      using Power = std::decay_t<decltype(power)>;
      if (along_positions) {
        call.lanes = lanes_for<T>(args.positions, kPositionLanes);
        call.tiles = parts(args.positions, call.lanes * kWidth<T>);
        launch(
            "map_along_positions", map_along_positions<T, Power>,
            {args.samples * call.tiles, kFeatureThreads, 1, map_along_positions_shared(kWidth<T>)},
            call, power);
      } else {
        call.lanes = lanes_for<T>(x.classes, kWarp);
        call.tiles = parts(args.positions, kFeatureThreads / call.lanes * kPositionTurns);
        launch("map_along_channels", map_along_channels<T, Power>,
               {args.samples * call.tiles, kFeatureThreads, 1, 0}, call, power);
      }
    });
  });
}

}  // namespace
}  // namespace cuda

int64_t attention_transfer_loss_workspace(const AttentionArgs& args) {
  return AttentionMaps::bytes(args);
}

Outcome attention_transfer_loss(const AttentionArgs& args) {
  const bool empty = args.samples * args.positions == 0;
  if (!empty &&
      (!has_runs(args.student, args.positions) || !has_runs(args.teacher, args.positions))) {
    return {Status::kUnsupportedLayout, -1};
  }
  cuda::Launcher launch(args.queue);
  const AttentionMaps maps(args);
  const int64_t samples = empty ? 0 : args.samples;
  const double scale = attention_scale(args.mean, args.samples, args.positions);
  const int64_t shared = cuda::SampleArena::bytes();
  if (!empty) {
    cuda::launch_map(launch, args.student, args, maps.student);
    cuda::launch_map(launch, args.teacher, args, maps.teacher);
    const cuda::CompareCall compare{args.positions, scale,        args.with_grad,
                                    maps.student,   maps.teacher, maps.losses};
    launch("compare_maps", cuda::compare_maps, {samples, cuda::kSampleThreads, 1, shared}, compare);
  }
  launch("sum_sample_losses", cuda::sum_sample_losses, {1, cuda::kSampleThreads, 1, shared},
         maps.losses, samples, scale, args.loss);
  return launch.outcome();
}

}  // namespace fastkd
