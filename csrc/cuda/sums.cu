// SPDX-License-Identifier: Apache-2.0
#include "cuda/group.h"
#include "cuda/sums.h"

namespace fastkd::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kRowsPerBlock = 16384;

int64_t block_count(int64_t rows) { return (rows + kRowsPerBlock - 1) / kRowsPerBlock; }

// A total and a largest magnitude.
struct Census {
  double total;
  float largest;

  __device__ __forceinline__ void add(const Census& other) {
    total += other.total;
    largest = max(other.largest, largest);
  }
};

// Over all threads of a block, in a fixed order; every thread gets it.
__device__ __forceinline__ Census block_sum(Census mine, Census* warps) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    mine.add({__shfl_xor_sync(kAllLanes, mine.total, distance),
              __shfl_xor_sync(kAllLanes, mine.largest, distance)});
  }
  if (lane_index() == 0) warps[warp_index()] = mine;
  __syncthreads();
  Census sum{0.0, 0.0f};
  for (int warp = 0; warp < kWarps; ++warp) sum.add(warps[warp]);
  return sum;
}

// The sum of of(i) over i in [0, count), of this block's share.
template <class Of>
__device__ __forceinline__ Census sum_of_share(int64_t count, int64_t share, const Of& of) {
  Arena arena(shared_memory());
  Census* const warps = arena.take<Census>(kWarps);
  Census mine{0.0, 0.0f};
  const int64_t begin = block_index() * share;
  const int64_t end = begin + share < count ? begin + share : count;
  for (int64_t i = begin + thread_index(); i < end; i += kThreads) mine.add(of(i));
  return block_sum(mine, warps);
}

struct CensusCall {
  RowWeights weights;
  RowOptions options;
  double grad_bound;
  float* unscale;
  bool halves;  // the gradient is float16
  CallSummary* summary;
};

__device__ __forceinline__ void write_summary(const CensusCall& call, const Census& census) {
  if (thread_index() != 0) return;
  RowOptions rows = call.options;
  const bool replaced = rows.num_items_on_device != nullptr;
  if (replaced) rows.num_items = *rows.num_items_on_device;
  double inverse = inverse_denominator(rows, census.total);
  if (replaced && !(rows.num_items >= 0.0)) inverse = static_cast<double>(NAN);  // nobody is told
  float prescale = 1.0f;
  if (call.halves) {
    prescale = float16_prescale(call.grad_bound * static_cast<double>(census.largest) * inverse);
  }
  *call.summary = {inverse, static_cast<float>(inverse * static_cast<double>(prescale))};
  if (call.unscale != nullptr) *call.unscale = 1.0f / prescale;
}

// One block: the whole summary. More: a partial census of each.
__global__ void __launch_bounds__(kThreads)
    take_census(const CensusCall call, const int64_t rows, Census* const partials) {
  const Census census = sum_of_share(rows, kRowsPerBlock, [&](int64_t row) {
    const float weight = call.weights(row);
    return Census{static_cast<double>(weight), ::fabsf(weight)};
  });
  if (grid_blocks() == 1) {
    write_summary(call, census);
  } else if (thread_index() == 0) {
    partials[block_index()] = census;
  }
}

__global__ void __launch_bounds__(kThreads)
    combine_census(const CensusCall call, const int64_t blocks, const Census* const partials) {
  write_summary(call, sum_of_share(blocks, blocks, [&](int64_t i) { return partials[i]; }));
}

struct LossCall {
  const CallSummary* summary;  // or nullptr: inverse holds
  double inverse;
  float* loss;
};

__device__ __forceinline__ void write_loss(const LossCall& call, double sum) {
  if (thread_index() != 0) return;
  const double inverse = call.summary == nullptr ? call.inverse : call.summary->inverse;
  // Where nothing counts the loss is 0, even if a row's is infinite.
  *call.loss = inverse == 0.0 ? 0.0f : static_cast<float>(sum * inverse);
}

__global__ void __launch_bounds__(kThreads)
    sum_losses(const LossCall call, const int64_t rows, const float* const row_loss,
               double* const partials) {
  const Census sum = sum_of_share(rows, kRowsPerBlock, [&](int64_t row) {
    return Census{static_cast<double>(row_loss[row]), 0.0f};
  });
  if (grid_blocks() == 1) {
    write_loss(call, sum.total);
  } else if (thread_index() == 0) {
    partials[block_index()] = sum.total;
  }
}

__global__ void __launch_bounds__(kThreads)
    combine_losses(const LossCall call, const int64_t blocks, const double* const partials) {
  const Census sum =
      sum_of_share(blocks, blocks, [&](int64_t i) { return Census{partials[i], 0.0f}; });
  write_loss(call, sum.total);
}

LaunchShape shape_of(int64_t blocks) {
  Arena arena(nullptr);
  arena.take<Census>(kWarps);
  return {blocks, kThreads, 1, arena.bytes()};
}

int64_t round_up(int64_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

Workspace::Workspace(void* memory, int64_t rows) {
  char* const base = static_cast<char*>(memory);
  summary = reinterpret_cast<CallSummary*>(base);
  partials = base + round_up(sizeof(CallSummary));
  row_loss = reinterpret_cast<float*>(static_cast<char*>(partials) +
                                      block_count(rows) * static_cast<int64_t>(sizeof(Census)));
}

int64_t Workspace::bytes(int64_t rows) {
  return round_up(sizeof(CallSummary)) + block_count(rows) * static_cast<int64_t>(sizeof(Census)) +
         rows * static_cast<int64_t>(sizeof(float));
}

void launch_census(Launcher& launch, const LogitArgs& args, const RowOptions& rows,
                   double grad_bound, const Workspace& workspace) {
  const CensusCall call{{args.target, args.sample_weight, rows.ignore_index},
                        rows,
                        grad_bound,
                        args.unscale,
                        args.grad.data != nullptr && args.grad.dtype == Dtype::kFloat16,
                        workspace.summary};
  Census* const partials = static_cast<Census*>(workspace.partials);
  const int64_t blocks = args.rows() == 0 ? 1 : block_count(args.rows());
  launch("take_census", take_census, shape_of(blocks), call, args.rows(), partials);
  if (blocks > 1) launch("combine_census", combine_census, shape_of(1), call, blocks, partials);
}

void launch_sum_of_losses(Launcher& launch, const LogitArgs& args, const CallSummary* summary,
                          double inverse, const Workspace& workspace) {
  const LossCall call{summary, inverse, args.loss};
  double* const partials = static_cast<double*>(workspace.partials);
  const int64_t blocks = args.rows() == 0 ? 1 : block_count(args.rows());
  launch("sum_losses", sum_losses, shape_of(blocks), call, args.rows(), workspace.row_loss,
         partials);
  if (blocks > 1) launch("combine_losses", combine_losses, shape_of(1), call, blocks, partials);
}

}  // namespace fastkd::cuda
