// SPDX-License-Identifier: Apache-2.0
// Squared distances are sums of squared differences: the cheaper |x|^2 + |y|^2 - 2 x y cancels for
// neighbours and for batches far from the origin, and no later step could mend that. Nor are inner
// products made from squared distances, where a short row would drown beside a long one.
#include "cuda/pair_table.h"
#include "losses/similarity.h"

namespace fastkd::cuda {

namespace {

// Up to here small tiles, or too few blocks would share the work.
constexpr int64_t kSmallRows = 256;
constexpr int kSmallTile = 16;

struct Square {
  template <class T>
  static __device__ __forceinline__ T add(T a, T b, T sum) {
    const T difference = a - b;
    return fma(difference, difference, sum);
  }
};

struct Product {
  template <class T>
  static __device__ __forceinline__ T add(T a, T b, T sum) {
    return fma(a, b, sum);
  }
};

// A tile of kSide x kSide pairs: threads have 4 x 4 pairs each, and the groups ("slices") of them
// that cover the tile share the features.
template <class T, int kSide>
struct PairTile {
  static constexpr int kAcross = kSide / 4;  // threads
  static constexpr int kSlices = kPairThreads / (kAcross * kAcross);
  static constexpr int kRows = kSide, kFeatures = 32;  // in shared memory at a time
  static constexpr int kLoads = kSide * kFeatures / kPairThreads;
  // A warp stores 4 rows x 8 features of a stage: with this stride each to a bank of its own.
  static constexpr int kStageStride = kSide + 4;
  static constexpr int kSumStride = kSide + 1;
  static constexpr int kStageSize = kFeatures * kStageStride;
  static constexpr int kSumsSize = kSlices * kSide * kSumStride;
  static_assert(kFeatures == 8 * kPairWarps && kSlices >= 1);

  T *rows, *columns;  // [kFeatures, kStageStride] each
  T* sums;            // [kSlices, kSide, kSumStride], in place of both

  __host__ __device__ __forceinline__ explicit PairTile(Arena& arena)
      : rows(arena.template take<T>(kSumsSize > 2 * kStageSize ? kSumsSize : 2 * kStageSize)),
        columns(rows + kStageSize),
        sums(rows) {}
};

// This thread's elements of the stages of some rows: rows 4 apart, one feature.
template <class Tile>
class StageReader {
 public:
  __device__ __forceinline__ StageReader(const Embeddings& x, int64_t rows, int64_t first_row)
      : rows_(static_cast<int>(rows - first_row < Tile::kRows ? rows - first_row : Tile::kRows) -
              lane_index() / 8),
        features_(x.features - (8 * warp_index() + lane_index() % 8)),
        step_(4 * x.features),
        next_(x.data + (first_row + lane_index() / 8) * x.features + (x.features - features_)) {}

  // Zeros beyond the ends: they add nothing.
  __device__ __forceinline__ void load(float (&x)[Tile::kLoads]) {
#pragma unroll
    for (int l = 0; l < Tile::kLoads; ++l) {
      x[l] = 4 * l < rows_ && features_ > 0 ? next_[l * step_] : 0.0f;
    }
    next_ += Tile::kFeatures;
    features_ -= Tile::kFeatures;
  }

 private:
  const int rows_;    // left from this thread's first
  int64_t features_;  // left from its next
  const int64_t step_;
  const float* next_;
};

template <class Tile, class T>
__device__ __forceinline__ void store_stage(const float (&x)[Tile::kLoads], T* stage) {
#pragma unroll
  for (int l = 0; l < Tile::kLoads; ++l) {
    const int feature = 8 * warp_index() + lane_index() % 8;
    stage[feature * Tile::kStageStride + 4 * l + lane_index() / 8] = static_cast<T>(x[l]);
  }
}

// Leaves the tile, slice by slice, in tile.sums.
template <class Relation, class T, int kSide>
__device__ __forceinline__ void sum_tile(const PairTile<T, kSide>& tile, const Embeddings& x,
                                         int64_t rows, const TileIndex& at) {
  using Tile = PairTile<T, kSide>;
  const int slice = thread_index() / (Tile::kAcross * Tile::kAcross);
  const int row = thread_index() / Tile::kAcross % Tile::kAcross * 4;
  const int column = thread_index() % Tile::kAcross * 4;
  LongSum<T> sums[4][4];
  T part[4][4] = {};
  float next_rows[Tile::kLoads], next_columns[Tile::kLoads];
  StageReader<Tile> row_reader(x, rows, at.row * kSide), column_reader(x, rows, at.column * kSide);
  row_reader.load(next_rows);
  column_reader.load(next_columns);
  for (int64_t feature = 0; feature < x.features; feature += Tile::kFeatures) {
    __syncthreads();  // all have read the stage before
    store_stage<Tile>(next_rows, tile.rows);
    store_stage<Tile>(next_columns, tile.columns);
    __syncthreads();
    row_reader.load(next_rows);
    column_reader.load(next_columns);
#pragma unroll 2
    for (int f = slice; f < Tile::kFeatures; f += Tile::kSlices) {
      const auto a = load_run<4>(tile.rows + f * Tile::kStageStride + row);
      const auto b = load_run<4>(tile.columns + f * Tile::kStageStride + column);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          part[r][c] = Relation::add(a.at[r], b.at[c], part[r][c]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[r][c].fold(part[r][c]);
    }
  }
  __syncthreads();
  for (int r = 0; r < 4; ++r) {
    for (int c = 0; c < 4; ++c) {
      tile.sums[(slice * kSide + row + r) * Tile::kSumStride + column + c] =
          sums[r][c].total(part[r][c]);
    }
  }
  __syncthreads();
}

// Adds up a tile's slices and writes finish(i, j, sum) and its mirror image.
template <class T, int kSide, class Finish>
__device__ __forceinline__ void write_tile(const PairTile<T, kSide>& tile, int64_t rows,
                                           const TileIndex& at, T* table, int64_t stride,
                                           const Finish& finish) {
  using Tile = PairTile<T, kSide>;
  for (int p = thread_index(); p < kSide * kSide; p += kPairThreads) {
    const int row = p / kSide, column = p % kSide;
    const int64_t i = at.row * kSide + row, j = at.column * kSide + column;
    if (i >= rows || j >= rows) continue;
    T* const sums = tile.sums + row * Tile::kSumStride + column;
    T sum = *sums;
#pragma unroll
    for (int slice = 1; slice < Tile::kSlices; ++slice) {
      sum += sums[slice * kSide * Tile::kSumStride];
    }
    table[i * stride + j] = *sums = finish(i, j, sum);
  }
  __syncthreads();
  if (at.row != at.column) {  // the same for all threads
    for (int p = thread_index(); p < kSide * kSide; p += kPairThreads) {
      const int64_t j = at.column * kSide + p / kSide, i = at.row * kSide + p % kSide;
      if (i < rows && j < rows) {
        table[j * stride + i] = tile.sums[p % kSide * Tile::kSumStride + p / kSide];
      }
    }
  }
}

// By member: a choice between the structs puts them into local memory.
__device__ __forceinline__ Embeddings side_of(const PairArgs& args, bool student) {
  return {student ? args.student.data : args.teacher.data,
          student ? args.student.features : args.teacher.features};
}

// Blocks have a tile of one side each, the student's first.
template <class T, int kSide>
__global__ void __launch_bounds__(kPairThreads, kPairBlocks)
    square_tiles(const PairArgs args, const PairTables<T> tables, const int64_t tiles,
                 const RkdDistance distance, SquareCensus* const census) {
  Arena arena(shared_memory());
  const PairTile<T, kSide> tile(arena);
  SquareCensus* const warps = arena.take<SquareCensus>(kPairWarps);
  const bool student = block_index() < tiles;
  const TileIndex at = upper_tile(student ? block_index() : block_index() - tiles);
  sum_tile<Square>(tile, side_of(args, student), args.rows, at);
  SquareCensus mine;
  const auto finish = [&](int64_t i, int64_t j, T square) {
    const bool finite = square - square == T{0};
    // Of a row to itself too: one row alone has no other square to be told by.
    if (!finite) mine.range.largest = static_cast<double>(INFINITY);
    if (i == j) return T{0};
    if (i < j) {
      const double in_double = static_cast<double>(square);
      SquareCensus pair;
      pair.distances = distance.distance(in_double);
      pair.positive = pair.distances > 0.0 ? 1.0 : 0.0;
      if (in_double > distance.eps * distance.eps) pair.range.smallest = in_double;
      if (finite) pair.range.largest = in_double;
      mine.add(pair);
    }
    return finite ? square : static_cast<T>(NAN);
  };
  write_tile(tile, args.rows, at, student ? tables.student : tables.teacher, tables.stride, finish);
  const SquareCensus all = block_census(mine, warps);
  if (thread_index() == 0) census[block_index()] = all;
}

template <int kSide>
__global__ void __launch_bounds__(kPairThreads, kPairBlocks)
    product_tiles(const PairArgs args, const PairTables<double> tables, const int64_t tiles,
                  const double eps, double* const student_inverses,
                  double* const teacher_inverses) {
  Arena arena(shared_memory());
  const PairTile<double, kSide> tile(arena);
  const bool student = block_index() < tiles;
  const TileIndex at = upper_tile(student ? block_index() : block_index() - tiles);
  sum_tile<Product>(tile, side_of(args, student), args.rows, at);
  const auto finish = [&](int64_t i, int64_t j, double product) {
    if (i == j) (student ? student_inverses : teacher_inverses)[i] = inverse_norm(product, eps);
    return product;
  };
  write_tile(tile, args.rows, at, student ? tables.student : tables.teacher, tables.stride, finish);
}

int64_t tile_side(int64_t rows) { return rows <= kSmallRows ? kSmallTile : kTileSide; }

template <class T, int kSide>
int64_t tile_bytes() {
  Arena arena(nullptr);
  const PairTile<T, kSide> tile(arena);
  arena.take<SquareCensus>(kPairWarps);
  return arena.bytes();
}

}  // namespace

int64_t census_tiles(int64_t rows) {
  const int64_t side = tile_side(rows);
  return upper_tiles((rows + side - 1) / side);
}

template <class T>
void launch_squares(Launcher& launch, const PairArgs& args, const PairTables<T>& tables,
                    const RkdDistance& distance, SquareCensus* census) {
  const int64_t tiles = census_tiles(args.rows);
  if (tile_side(args.rows) == kSmallTile) {
    launch("square_tiles", square_tiles<T, kSmallTile>,
           {2 * tiles, kPairThreads, 1, tile_bytes<T, kSmallTile>()}, args, tables, tiles, distance,
           census);
  } else {
    launch("square_tiles", square_tiles<T, kTileSide>,
           {2 * tiles, kPairThreads, 1, tile_bytes<T, kTileSide>()}, args, tables, tiles, distance,
           census);
  }
}

template void launch_squares(Launcher&, const PairArgs&, const PairTables<float>&,
                             const RkdDistance&, SquareCensus*);
template void launch_squares(Launcher&, const PairArgs&, const PairTables<double>&,
                             const RkdDistance&, SquareCensus*);

void launch_products(Launcher& launch, const PairArgs& args, const PairTables<double>& tables,
                     double eps, double* student_inverses, double* teacher_inverses) {
  const int64_t tiles = census_tiles(args.rows);
  if (tile_side(args.rows) == kSmallTile) {
    launch("product_tiles", product_tiles<kSmallTile>,
           {2 * tiles, kPairThreads, 1, tile_bytes<double, kSmallTile>()}, args, tables, tiles, eps,
           student_inverses, teacher_inverses);
  } else {
    launch("product_tiles", product_tiles<kTileSide>,
           {2 * tiles, kPairThreads, 1, tile_bytes<double, kTileSide>()}, args, tables, tiles, eps,
           student_inverses, teacher_inverses);
  }
}

}  // namespace fastkd::cuda
