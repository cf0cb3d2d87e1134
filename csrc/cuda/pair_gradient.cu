// SPDX-License-Identifier: Apache-2.0
// A product of the pulls with differences of rows, which an offset of all rows leaves as they are;
// the rows times pulls would cancel.
#include "cuda/pair_gradient.h"
#include "losses/similarity.h"

namespace fastkd::cuda {

namespace {

constexpr int kFeatures = 64;  // of a block, and kTileSide rows; 4 x 4 a thread
constexpr int kAcross = kFeatures / 4;
constexpr int kStage = 16;  // rows j at a time
constexpr int kPullLoads = kStage * kTileSide / kPairThreads;
constexpr int kRowLoads = kStage * kFeatures / kPairThreads;
static_assert(kTileSide / 4 * kAcross == kPairThreads);

struct Stage {
  float* pulls;  // [kStage, kTileSide]
  float* rows;   // [kStage, kFeatures]

  __host__ __device__ __forceinline__ explicit Stage(Arena& arena)
      : pulls(arena.take<float>(kStage * kTileSide)), rows(arena.take<float>(kStage * kFeatures)) {}
};

struct Product {
  Embeddings x;
  int64_t rows, stride;
  Pulls<float> pulls;
  const bool* wide;  // or nullptr
  float* grad;       // [rows, features]

  // Zeros beyond the ends.
  __device__ __forceinline__ float row(int64_t i, int64_t feature) const {
    return i < rows && feature < x.features ? x.data[i * x.features + feature] : 0.0f;
  }
  __device__ __forceinline__ float pull(int64_t j, int64_t i) const {
    return j < rows && i < rows ? pulls.pairs[j * stride + i] : 0.0f;
  }
};

// What this thread brings of the rows j of a stage.
struct Share {
  float pulls[kPullLoads], rows[kRowLoads];

  __device__ __forceinline__ void load(const Product& product, int64_t j, int64_t i,
                                       int64_t feature) {
#pragma unroll
    for (int l = 0; l < kPullLoads; ++l) {
      const int index = l * kPairThreads + thread_index();
      pulls[l] = product.pull(j + index / kTileSide, i + index % kTileSide);
    }
#pragma unroll
    for (int l = 0; l < kRowLoads; ++l) {
      const int index = l * kPairThreads + thread_index();
      rows[l] = product.row(j + index / kFeatures, feature + index % kFeatures);
    }
  }

  __device__ __forceinline__ void store(const Stage& stage) const {
#pragma unroll
    for (int l = 0; l < kPullLoads; ++l) stage.pulls[l * kPairThreads + thread_index()] = pulls[l];
#pragma unroll
    for (int l = 0; l < kRowLoads; ++l) stage.rows[l * kPairThreads + thread_index()] = rows[l];
  }
};

template <bool kDirected>
__global__ void __launch_bounds__(kPairThreads, kPairBlocks)
    pair_gradient(const Product product, const int64_t row_tiles) {
  if (product.wide != nullptr && *product.wide) return;  // the whole block
  Arena arena(shared_memory());
  const Stage stage(arena);
  const int64_t tile_row = block_index() % row_tiles * kTileSide;
  const int64_t tile_feature = block_index() / row_tiles * kFeatures;
  const int row = thread_index() / kAcross * 4, feature = thread_index() % kAcross * 4;
  float x[4][4], sum[4][4] = {};
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      x[r][f] = product.row(tile_row + row + r, tile_feature + feature + f);
    }
  }
  Share next;
  next.load(product, 0, tile_row, tile_feature);
  for (int64_t first = 0; first < product.rows; first += kStage) {
    __syncthreads();  // all have read the stage before
    next.store(stage);
    __syncthreads();
    next.load(product, first + kStage, tile_row, tile_feature);
    float part[4][4] = {};
#pragma unroll(kDirected ? 1 : 2)  // else registers spill
    for (int j = 0; j < kStage; ++j) {
      const auto pulls = load_run<4>(stage.pulls + j * kTileSide + row);
      const auto others = load_run<4>(stage.rows + j * kFeatures + feature);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float direction = kDirected ? -direction_of(pulls.at[r]) : -1.0f;
#pragma unroll
        for (int f = 0; f < 4; ++f) {
          part[r][f] = fma(pulls.at[r], fma(direction, x[r][f], others.at[f]), part[r][f]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int f = 0; f < 4; ++f) sum[r][f] += part[r][f];
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int64_t i = tile_row + row + r;
    const float* const stretches = product.pulls.stretches;
    const float stretch = stretches != nullptr && i < product.rows ? stretches[i] : 0.0f;
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      const int64_t at = tile_feature + feature + f;
      if (i < product.rows && at < product.x.features) {
        product.grad[i * product.x.features + at] = fma(stretch, x[r][f], sum[r][f]);
      }
    }
  }
}

__global__ void __launch_bounds__(kPairThreads) zeros(float* const out, const int64_t count) {
  const int64_t at = block_index() * kPairThreads + thread_index();
  if (at < count) out[at] = 0.0f;
}

}  // namespace

void launch_pair_gradient(Launcher& launch, const PairArgs& args, const Pulls<float>& pulls,
                          bool directed, const bool* wide) {
  const int64_t row_tiles = (args.rows + kTileSide - 1) / kTileSide;
  const int64_t feature_tiles = (args.student.features + kFeatures - 1) / kFeatures;
  Arena arena(nullptr);
  const Stage stage(arena);
  const Product product{args.student, args.rows, pair_stride(args.rows), pulls, wide, args.grad};
  launch("pair_gradient", directed ? pair_gradient<true> : pair_gradient<false>,
         {row_tiles * feature_tiles, kPairThreads, 1, arena.bytes()}, product, row_tiles);
}

void launch_zeros(Launcher& launch, float* out, int64_t count) {
  launch("zeros", zeros, {(count + kPairThreads - 1) / kPairThreads, kPairThreads, 1, 0}, out,
         count);
}

}  // namespace fastkd::cuda
