// SPDX-License-Identifier: Apache-2.0
// pair_gradient.cu in doubles: differences of rows are exact, and what is left of large pulls that
// cancel is true.
#include "cuda/pair_gradient.h"

namespace fastkd::cuda {

namespace {

// A block has a tile of rows and features.
constexpr int kStage = 16;  // rows j at a time
constexpr int kLoads = kStage * kTileSide / kPairThreads;

struct WideProduct {
  Embeddings x;
  int64_t rows, stride;
  Pulls<double> pulls;
  const bool* wide;  // or nullptr
  float* grad;       // [rows, features]

  // Zeros beyond the ends.
  __device__ __forceinline__ double row(int64_t i, int64_t feature) const {
    return i < rows && feature < x.features ? static_cast<double>(x.data[i * x.features + feature])
                                            : 0.0;
  }
  __device__ __forceinline__ double pull(int64_t j, int64_t i) const {
    return j < rows && i < rows ? pulls.pairs[j * stride + i] : 0.0;
  }
};

struct WideStage {
  double* pulls;  // [kStage, kTileSide]
  double* rows;   // [kStage, kTileSide]

  __host__ __device__ __forceinline__ explicit WideStage(Arena& arena)
      : pulls(arena.take<double>(kStage * kTileSide)),
        rows(arena.take<double>(kStage * kTileSide)) {}
};

template <bool kDifferences>
__global__ void __launch_bounds__(kPairThreads, kPairBlocks)
    wide_pair_gradient(const WideProduct product, const int64_t row_tiles) {
  if (product.wide != nullptr && !*product.wide) return;  // the whole block
  Arena arena(shared_memory());
  const WideStage stage(arena);
  const int64_t tile_row = block_index() % row_tiles * kTileSide;
  const int64_t tile_feature = block_index() / row_tiles * kTileSide;
  const int row = first_of_thread(), feature = second_of_thread();
  double x[kFirsts][kSeconds], sum[kFirsts][kSeconds] = {};
#pragma unroll
  for (int r = 0; r < kFirsts; ++r) {
#pragma unroll
    for (int f = 0; f < kSeconds; ++f) {
      x[r][f] = product.row(tile_row + row + r, tile_feature + feature + f);
    }
  }
  for (int64_t first = 0; first < product.rows; first += kStage) {
    __syncthreads();  // all have read the stage before
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int index = l * kPairThreads + thread_index();
      const int64_t j = first + index / kTileSide;
      stage.pulls[index] = product.pull(j, tile_row + index % kTileSide);
      stage.rows[index] = product.row(j, tile_feature + index % kTileSide);
    }
    __syncthreads();
#pragma unroll 2
    for (int j = 0; j < kStage; ++j) {
      const auto pulls = load_run<kFirsts>(stage.pulls + j * kTileSide + row);
      const auto others = load_run<kSeconds>(stage.rows + j * kTileSide + feature);
#pragma unroll
      for (int r = 0; r < kFirsts; ++r) {
#pragma unroll
        for (int f = 0; f < kSeconds; ++f) {
          const double pulled = kDifferences ? others.at[f] - x[r][f] : others.at[f];
          sum[r][f] = fma(pulls.at[r], pulled, sum[r][f]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kFirsts; ++r) {
    const int64_t i = tile_row + row + r;
    const double* const stretches = product.pulls.stretches;
    const double stretch = stretches != nullptr && i < product.rows ? stretches[i] : 0.0;
#pragma unroll
    for (int f = 0; f < kSeconds; ++f) {
      const int64_t at = tile_feature + feature + f;
      if (i < product.rows && at < product.x.features) {
        product.grad[i * product.x.features + at] =
            static_cast<float>(fma(stretch, x[r][f], sum[r][f]));
      }
    }
  }
}

}  // namespace

void launch_wide_gradient(Launcher& launch, const PairArgs& args, const Pulls<double>& pulls,
                          bool differences, const bool* wide) {
  const int64_t row_tiles = (args.rows + kTileSide - 1) / kTileSide;
  const int64_t feature_tiles = (args.student.features + kTileSide - 1) / kTileSide;
  Arena arena(nullptr);
  const WideStage stage(arena);
  const WideProduct product{args.student, args.rows, pair_stride(args.rows),
                            pulls,        wide,      args.grad};
  launch("wide_pair_gradient", differences ? wide_pair_gradient<true> : wide_pair_gradient<false>,
         {row_tiles * feature_tiles, kPairThreads, 1, arena.bytes()}, product, row_tiles);
}

}  // namespace fastkd::cuda
