// SPDX-License-Identifier: Apache-2.0
#include "cuda/triplets.h"

namespace fastkd::cuda {

namespace {

// The tables of one side, [stride, stride] each.
struct Side {
  SquareGrid grid;
  double* squares;
  float *high, *low, *inverse;

  __device__ __forceinline__ Side(const SquareGrid& grid, double* squares,
                                  const SplitTables& tables, Plane high, Plane low, Plane inverse)
      : grid(grid),
        squares(squares),
        high(tables.row(high, 0)),
        low(tables.row(low, 0)),
        inverse(tables.row(inverse, 0)) {}

  // Of an entry; these return its inverse root. pair: of two examples, else there is a zero.
  __device__ __forceinline__ float split(int64_t at, bool pair) const {
    SplitSquare entry{0.0f, 0.0f, 0.0f};
    if (pair) entry = grid.split(squares[at]);
    high[at] = entry.high;
    low[at] = entry.low;
    return inverse[at] = entry.inverse;
  }
  __device__ __forceinline__ float widen(int64_t at, bool pair) const {
    if (!pair) squares[at] = 0.0;
    return inverse[at] = pair ? grid.wide_inverse(squares[at] * (1.0 / grid.unit)) : 0.0f;
  }
};

// A block a row of the tables, those of zeros too.
__global__ void __launch_bounds__(kPairThreads, kLightBlocks)
    split_squares(const int64_t rows, const PairTables<double> squares, const SplitTables tables,
                  double* const mismatches) {
  Arena arena(shared_memory());
  double* const warps = arena.take<double>(kPairWarps);
  const SquareGrid* const grids = tables.form->grids;
  const Side student(grids[0], squares.student, tables, kStudentHigh, kStudentLow, kStudentInverse);
  const Side teacher(grids[1], squares.teacher, tables, kTeacherHigh, kTeacherLow, kTeacherInverse);
  const bool wide = tables.form->wide;
  const int64_t i = block_index();
  double different = 0.0;
  for (int64_t j = thread_index(); j < tables.stride; j += kPairThreads) {
    const bool pair = i < rows && j < rows && i != j;
    const int64_t at = i * tables.stride + j;
    const float of_student = wide ? student.widen(at, pair) : student.split(at, pair);
    const float of_teacher = wide ? teacher.widen(at, pair) : teacher.split(at, pair);
    if ((of_student == 0.0f) != (of_teacher == 0.0f)) different += 1.0;
  }
  different = block_sum(different, warps);
  if (i < rows && thread_index() == 0) mismatches[i] = different;
}

}  // namespace

void launch_split(Launcher& launch, int64_t rows, const PairTables<double>& squares,
                  const SplitTables& tables, double* mismatches) {
  Arena arena(nullptr);
  arena.take<double>(kPairWarps);
  launch("split_squares", split_squares, {tables.stride, kPairThreads, 1, arena.bytes()}, rows,
         squares, tables, mismatches);
}

}  // namespace fastkd::cuda
