// SPDX-License-Identifier: Apache-2.0
#include "cpu/angle_tables.h"

#include <math.h>

namespace fastkd::cpu {

template <class T>
SquareRange square_range(const PairTable<T>& squares, int64_t rows, double nearest, double* of_rows,
                         bool* ok) {
  const int64_t width = whole_lanes(rows);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      DoubleVec largest(0.0), smallest(DBL_MAX), sum(0.0);
      for (int64_t j = 0; j < width; j += kLanes) {
        const DoubleVec x = DoubleVec::load(squares.row(i) + j);
        largest = max(largest, x);
        smallest = smallest_above(DoubleVec(nearest), x, smallest);
        sum = sum + x;
      }
      const double total = sum_lanes(sum);
      of_rows[2 * i] = total <= DBL_MAX ? max_lanes(largest) : total;
      of_rows[2 * i + 1] = min_lanes(smallest);
    }
  };
  *ok &= parallel_by_cost(rows, width, body);
  SquareRange range;
  for (int64_t i = 0; i < rows; ++i) {
    if (!(of_rows[2 * i] <= range.largest)) range.largest = of_rows[2 * i];
    if (!(range.largest <= DBL_MAX)) return range;
    if (of_rows[2 * i + 1] < range.smallest) range.smallest = of_rows[2 * i + 1];
  }
  return range;
}

template SquareRange square_range(const PairTable<float>&, int64_t, double, double*, bool*);
template SquareRange square_range(const PairTable<double>&, int64_t, double, double*, bool*);

void PlainSquares::make(const SquareRows& side, const SquareGrid& grid, bool* ok) {
  const PlainSquares out(side);
  const float to_unit = static_cast<float>(1.0 / grid.unit);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < side.width; j += kLanes) {
        const Vec scaled = Vec::load(out.square.row(i) + j) * Vec(to_unit);
        scaled.store(out.square.row(i) + j);
        grid.inverse(scaled).store(out.inverse.row(i) + j);
      }
    }
  };
  *ok &= parallel_by_cost(side.width, side.width, body);
}

void SplitSquares::make(const SquareRows& side, const SquareGrid& grid, bool* ok) {
  const PairTable<double> squares = side.doubles();
  const SplitSquares out(side);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float *const high = out.high.row(i), *const low = out.low.row(i);
      // What is read lies ahead of what is written: high takes half its room, low is elsewhere.
      for (int64_t j = 0; j < side.width; j += kLanes) {
        const SplitOf<Vec> part = grid.split(DoubleVec::load(squares.row(i) + j));
        part.high.store(high + j);
        part.low.store(low + j);
      }
      float* const inverse = out.inverse.row(i);
      for (int64_t j = 0; j < side.width; j += kLanes) {
        grid.inverse(Vec::load(high + j) + Vec::load(low + j)).store(inverse + j);
      }
    }
  };
  *ok &= parallel_by_cost(side.width, 4 * side.width, body);
}

void WideSquares::make(const SquareRows& side, const SquareGrid& grid, bool* ok) {
  const WideSquares out(side);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double* const square = out.square.row(i);
      for (int64_t j = 0; j < side.width; j += kLanes) {
        const DoubleVec scaled = DoubleVec::load(square + j) * DoubleVec(1.0 / grid.unit);
        scaled.store(square + j);
        grid.wide_inverse(scaled).store(out.inverse.row(i) + j);
      }
    }
  };
  *ok &= parallel_by_cost(side.width, 8 * side.width, body);
}

}  // namespace fastkd::cpu
