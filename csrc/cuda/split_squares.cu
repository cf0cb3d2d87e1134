// SPDX-License-Identifier: Apache-2.0
#include "cuda/triplets.h"

namespace fastkd::cuda {

namespace {

// Splits an entry of row i; returns its inverse root.
__device__ __forceinline__ float split_entry(const SquareGrid& grid, const double* square,
                                             float* high, float* low, float* inverse) {
  SplitSquare split{0.0f, 0.0f, 0.0f};
  if (square != nullptr) split = grid.split(*square);
  *high = split.high;
  *low = split.low;
  *inverse = split.inverse;
  return split.inverse;
}

// A block a row of the tables, those of zeros too.
__global__ void __launch_bounds__(kPairThreads, kLightBlocks)
    split_squares(const int64_t rows, const PairTables<double> squares,
                  const SquareGrid* const grids, const SplitTables tables,
                  double* const mismatches) {
  Arena arena(shared_memory());
  double* const warps = arena.take<double>(kPairWarps);
  const SquareGrid student_grid = grids[0], teacher_grid = grids[1];
  const int64_t i = block_index();
  double different = 0.0;
  for (int64_t j = thread_index(); j < tables.stride; j += kPairThreads) {
    const bool pair = i < rows && j < rows && i != j;
    const int64_t at = i * tables.stride + j;
    const float student = split_entry(
        student_grid, pair ? squares.student + at : nullptr, tables.row(kStudentHigh, i) + j,
        tables.row(kStudentLow, i) + j, tables.row(kStudentInverse, i) + j);
    const float teacher = split_entry(
        teacher_grid, pair ? squares.teacher + at : nullptr, tables.row(kTeacherHigh, i) + j,
        tables.row(kTeacherLow, i) + j, tables.row(kTeacherInverse, i) + j);
    if ((student == 0.0f) != (teacher == 0.0f)) different += 1.0;
  }
  different = block_sum(different, warps);
  if (i < rows && thread_index() == 0) mismatches[i] = different;
}

}  // namespace

void launch_split(Launcher& launch, int64_t rows, const PairTables<double>& squares,
                  const SquareGrid* grids, const SplitTables& tables, double* mismatches) {
  Arena arena(nullptr);
  arena.take<double>(kPairWarps);
  launch("split_squares", split_squares, {tables.stride, kPairThreads, 1, arena.bytes()}, rows,
         squares, grids, tables, mismatches);
}

}  // namespace fastkd::cuda
