// SPDX-License-Identifier: Apache-2.0
// triplets.cu in doubles, for batches with pairs so near that floats would not do. Such batches are
// few, so this is kept plain.
#include "cuda/triplets.h"

namespace fastkd::cuda {

namespace {

constexpr int kWideBlocks = 2;  // at once on a multiprocessor: three would spill registers

constexpr int kStageSize = kStageRows * kTileSide;
static_assert(kStageSize % kPairThreads == 0);

enum Column {
  kStudentSquare,
  kTeacherSquare,
  kSquareColumns,  // what the distance between the ends is
  kStudentRoot = kSquareColumns,
  kTeacherRoot,
  kArmColumns,  // what an arm is
};

// Reads the tables, squares in units of the grids.
struct Reader {
  const WideTables& tables;
  double per_student, per_teacher;  // 1 / unit: a power of two

  __device__ __forceinline__ explicit Reader(const WideTables& tables)
      : tables(tables),
        per_student(1.0 / tables.split.form->grids[0].unit),
        per_teacher(1.0 / tables.split.form->grids[1].unit) {}

  __device__ __forceinline__ double at(int column, int64_t i, int64_t j) const {
    const int64_t place = i * tables.squares.stride + j;
    switch (column) {
      case kStudentSquare:
        return tables.squares.student[place] * per_student;
      case kTeacherSquare:
        return tables.squares.teacher[place] * per_teacher;
      case kStudentRoot:
        return static_cast<double>(tables.split.row(kStudentInverse, i)[j]);
      default:
        return static_cast<double>(tables.split.row(kTeacherInverse, i)[j]);
    }
  }

  // Brings rows [row, row + kStageRows) of a tile to stage[kColumns, kStageRows, kTileSide].
  template <int kColumns>
  __device__ __forceinline__ void bring(int64_t row, int64_t tile, double* stage) const {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
#pragma unroll
      for (int l = 0; l < kStageSize / kPairThreads; ++l) {
        const int index = l * kPairThreads + thread_index();
        stage[column * kStageSize + index] =
            at(column, row + index / kTileSide, tile + index % kTileSide);
      }
    }
  }
};

// kCount neighbours of one example.
template <int kColumns, int kCount>
struct Relations {
  Run<double, kCount> column[kColumns];

  // Row of a stage, at the first of them.
  __device__ __forceinline__ explicit Relations(const double* stage) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) column[c] = load_run<kCount>(stage + c * kStageSize);
  }
  __device__ __forceinline__ Relations(const Reader& reader, int64_t i, int64_t j) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int n = 0; n < kCount; ++n) column[c].at[n] = reader.at(c, i, j + n);
    }
  }

  __device__ __forceinline__ void halve_roots() {
    static_assert(kColumns == kArmColumns);
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      column[kStudentRoot].at[n] *= 0.5;
      column[kTeacherRoot].at[n] *= 0.5;
    }
  }
  __device__ __forceinline__ WholeArm<double> student_arm(int n) const {
    return {column[kStudentSquare].at[n], column[kStudentRoot].at[n]};
  }
  __device__ __forceinline__ WholeArm<double> teacher_arm(int n) const {
    return {column[kTeacherSquare].at[n], column[kTeacherRoot].at[n]};
  }
};

template <int kCount>
using Arms = Relations<kArmColumns, kCount>;
template <int kCount>
using Squares = Relations<kSquareColumns, kCount>;

// As in triplets.cu.
template <class C, int kA, int kB, int kE>
__device__ __forceinline__ void add_triplet(const C& criterion, const Arms<kA>& half, int a,
                                            const Arms<kB>& arms, int b, const Squares<kE>& squares,
                                            int e, bool same, AngleTerm<double>& sum) {
  const Cosine<double> student = bounded(cosine_at_vertex(half.student_arm(a), arms.student_arm(b),
                                                          squares.column[kStudentSquare].at[e]));
  const double teacher = bounded(cosine_at_vertex(half.teacher_arm(a), arms.teacher_arm(b),
                                                  squares.column[kTeacherSquare].at[e]))
                             .cosine;
  add_angle_term(criterion, student, same ? student.cosine : teacher, sum);
}

// Of a block's tile of 32 x 32.
__device__ __forceinline__ void store_sums(const double (&sum)[kFirsts][kSeconds], int64_t stride,
                                           const TileIndex& tile, double* table) {
  const int64_t i = tile.row * kTileSide + first_of_thread();
  const int64_t k = tile.column * kTileSide + second_of_thread();
#pragma unroll
  for (int a = 0; a < kFirsts; ++a) {
#pragma unroll
    for (int b = 0; b < kSeconds; ++b) table[(i + a) * stride + k + b] = sum[a][b];
  }
}

template <class C>
__global__ void __launch_bounds__(kPairThreads, kWideBlocks)
    wide_ends(const C criterion, const WideTables tables, const int64_t rows, const WideSums sums) {
  if (!tables.split.form->wide) return;  // the whole block
  Arena arena(shared_memory());
  double* const first_arms = arena.take<double>(kArmColumns * kStageSize);
  double* const second_arms = arena.take<double>(kArmColumns * kStageSize);
  double* const warps = arena.take<double>(kPairWarps);
  const Reader reader(tables);
  const TileIndex tile = upper_tile(block_index());
  const int64_t i = tile.row * kTileSide + first_of_thread();
  const int64_t k = tile.column * kTileSide + second_of_thread();
  const Squares<kSeconds> squares[kFirsts] = {Squares<kSeconds>(reader, i, k),
                                              Squares<kSeconds>(reader, i + 1, k)};
  double across[kFirsts][kSeconds] = {}, value = 0.0;
  for (int64_t j = 0; j < rows; j += kStageRows) {
    __syncthreads();  // all have read the stage before
    reader.bring<kArmColumns>(j, tile.row * kTileSide, first_arms);
    reader.bring<kArmColumns>(j, tile.column * kTileSide, second_arms);
    __syncthreads();
#pragma unroll 1
    for (int row = 0; row < kStageRows; ++row) {
      Arms<kFirsts> half(first_arms + row * kTileSide + first_of_thread());
      half.halve_roots();
      const Arms<kSeconds> arms(second_arms + row * kTileSide + second_of_thread());
#pragma unroll
      for (int a = 0; a < kFirsts; ++a) {
#pragma unroll
        for (int b = 0; b < kSeconds; ++b) {
          AngleTerm<double> sum{i + a < k + b ? value : 0.0, across[a][b], 0.0};
          add_triplet(criterion, half, a, arms, b, squares[a], b, false, sum);
          across[a][b] = sum.across;
          if (i + a < k + b) value = sum.value;
        }
      }
    }
  }
  if (sums.ends != nullptr) store_sums(across, tables.squares.stride, tile, sums.ends);
  value = block_sum(value, warps);
  if (thread_index() == 0) sums.values[block_index()] = value;
}

template <class C>
__global__ void __launch_bounds__(kPairThreads, kWideBlocks)
    wide_vertices(const C criterion, const WideTables tables, const int64_t rows,
                  const WideSums sums) {
  if (!tables.split.form->wide) return;  // the whole block
  Arena arena(shared_memory());
  double* const arm_stage = arena.take<double>(kArmColumns * kStageSize);
  double* const square_stage = arena.take<double>(kSquareColumns * kStageSize);
  const Reader reader(tables);
  const int64_t tiles = tables.squares.stride / kTileSide;  // in a row
  const TileIndex tile{block_index() / tiles, block_index() % tiles};
  const int64_t tile_vertex = tile.row * kTileSide, tile_neighbour = tile.column * kTileSide;
  const int64_t vertex = tile_vertex + first_of_thread();
  const int64_t neighbour = tile_neighbour + second_of_thread();
  Arms<kSeconds> half[kFirsts] = {Arms<kSeconds>(reader, vertex, neighbour),
                                  Arms<kSeconds>(reader, vertex + 1, neighbour)};
  half[0].halve_roots();
  half[1].halve_roots();
  double across[kFirsts][kSeconds] = {}, along[kFirsts][kSeconds] = {};
  for (int64_t k = 0; k < rows; k += kStageRows) {
    __syncthreads();  // all have read the stage before
    reader.bring<kArmColumns>(k, tile_vertex, arm_stage);
    reader.bring<kSquareColumns>(k, tile_neighbour, square_stage);
    __syncthreads();
#pragma unroll 1
    for (int row = 0; row < kStageRows; ++row) {
      const Arms<kFirsts> arms(arm_stage + row * kTileSide + first_of_thread());
      const Squares<kSeconds> squares(square_stage + row * kTileSide + second_of_thread());
#pragma unroll
      for (int a = 0; a < kFirsts; ++a) {
#pragma unroll
        for (int b = 0; b < kSeconds; ++b) {
          const bool same = k + row == neighbour + b;
          AngleTerm<double> sum{0.0, across[a][b], along[a][b]};
          add_triplet(criterion, half[a], b, arms, a, squares, b, same, sum);
          across[a][b] = sum.across;
          along[a][b] = sum.along;
        }
      }
    }
  }
  store_sums(across, tables.squares.stride, tile, sums.across);
  store_sums(along, tables.squares.stride, tile, sums.along);
}

}  // namespace

template <class C>
void launch_wide_ends(Launcher& launch, const C& criterion, int64_t rows, const WideTables& tables,
                      const AngleSums& sums) {
  Arena arena(nullptr);
  arena.take<double>(kArmColumns * kStageSize);
  arena.take<double>(kArmColumns * kStageSize);
  arena.take<double>(kPairWarps);
  launch("wide_ends", wide_ends<C>, {plan_ends(rows).tiles, kPairThreads, 1, arena.bytes()},
         criterion, tables, rows, WideSums::in(tables.split, sums));
}

template <class C>
void launch_wide_vertices(Launcher& launch, const C& criterion, int64_t rows,
                          const WideTables& tables, const AngleSums& sums) {
  Arena arena(nullptr);
  arena.take<double>(kArmColumns * kStageSize);
  arena.take<double>(kSquareColumns * kStageSize);
  launch("wide_vertices", wide_vertices<C>,
         {plan_vertices(rows).tiles, kPairThreads, 1, arena.bytes()}, criterion, tables, rows,
         WideSums::in(tables.split, sums));
}

template void launch_wide_ends(Launcher&, const SmoothL1&, int64_t, const WideTables&,
                               const AngleSums&);
template void launch_wide_ends(Launcher&, const L1&, int64_t, const WideTables&, const AngleSums&);
template void launch_wide_ends(Launcher&, const L2&, int64_t, const WideTables&, const AngleSums&);
template void launch_wide_vertices(Launcher&, const SmoothL1&, int64_t, const WideTables&,
                                   const AngleSums&);
template void launch_wide_vertices(Launcher&, const L1&, int64_t, const WideTables&,
                                   const AngleSums&);
template void launch_wide_vertices(Launcher&, const L2&, int64_t, const WideTables&,
                                   const AngleSums&);

}  // namespace fastkd::cuda
