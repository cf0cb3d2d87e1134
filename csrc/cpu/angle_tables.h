// SPDX-License-Identifier: Apache-2.0
// Squared distances of a batch as its angles want them: on a grid, or in double where
// losses/rkd_angle_loss.h says wide.
//
// A side has N rows of three times whole_lanes(N) floats. They are filled with doubles, then turned
// in place, row by row:
//
//   filled   square of doubles  |  (free)
//   split    high  |  inverse   |  low
//   wide     square of doubles  |  inverse
#pragma once

#include "cpu/pair_table.h"
#include "losses/rkd_angle_loss.h"

namespace fastkd::cpu {

struct SquareRows {
  float* data;
  int64_t width;  // whole_lanes(N)

  static int64_t elements(int64_t rows) { return 3 * PairTable<float>::elements(rows); }
  PairTable<float> third(int n) const { return {data + n * width, 3 * width}; }
  PairTable<double> doubles() const { return {reinterpret_cast<double*>(data), 3 * width / 2}; }
};

struct SplitSquares {
  using V = Vec;
  PairTable<float> high, inverse, low;

  // Turns what a side is filled with.
  static void make(const SquareRows& side, const SquareGrid& grid, bool* ok);
  explicit SplitSquares(const SquareRows& side)
      : high(side.third(0)), inverse(side.third(1)), low(side.third(2)) {}

  // Plain pointers: stores to other tables don't make the compiler load them anew.
  struct Row {
    const float *high, *low, *inverse;

    Arm<Vec> arms(int64_t k) const {
      return {Vec::load(high + k), Vec::load(low + k), Vec::load(inverse + k)};
    }
    Arm<Vec> half_arm(int64_t i) const {
      return {Vec(high[i]), Vec(low[i]), Vec(0.5f * inverse[i])};
    }
    Cosine<Vec> cosines(const Arm<Vec>& half, const Arm<Vec>& arms, int64_t k) const {
      return cosine_at_vertex(half, arms, Vec::load(high + k), Vec::load(low + k));
    }
  };
  Row row(int64_t i) const { return {high.row(i), low.row(i), inverse.row(i)}; }
};

struct WideSquares {
  using V = DoubleVec;
  PairTable<double> square;
  PairTable<float> inverse;

  static void make(const SquareRows& side, const SquareGrid& grid, bool* ok);
  explicit WideSquares(const SquareRows& side) : square(side.doubles()), inverse(side.third(2)) {}

  struct Row {
    const double* square;
    const float* inverse;

    WideArm<DoubleVec> arms(int64_t k) const {
      return {DoubleVec::load(square + k), DoubleVec::load(inverse + k)};
    }
    WideArm<DoubleVec> half_arm(int64_t i) const {
      return {DoubleVec(square[i]), DoubleVec(0.5 * static_cast<double>(inverse[i]))};
    }
    Cosine<DoubleVec> cosines(const WideArm<DoubleVec>& half, const WideArm<DoubleVec>& arms,
                              int64_t k) const {
      return cosine_at_vertex(half, arms, DoubleVec::load(square + k));
    }
  };
  Row row(int64_t i) const { return {square.row(i), inverse.row(i)}; }
};

// Both sides, and sums over triplets. arms [vertex, neighbour]: dloss/dS of a side of the angle,
// in two parts; ends [i, k], i < k: -dloss/dS across the angle.
template <class Squares>
struct AngleTables {
  using Sum = Lane<typename Squares::V>;
  Squares student, teacher;
  PairTable<Sum> across, along, ends;
  PairTable<Sum> weights;  // over what is not needed at the end
  double* partials;        // scratch, [triplet_tasks(rows)]
};

// The range of the doubles that a side is filled with; largest is NaN or infinite where one is.
// of_rows: scratch, [2 * rows].
SquareRange square_range(const SquareRows& side, int64_t rows, double eps, double* of_rows,
                         bool* ok);

}  // namespace fastkd::cpu
