// SPDX-License-Identifier: Apache-2.0
// Squared distances of a batch as its angles want them, in one of three ways: losses/
// rkd_angle_loss.h says which suits. A side has N rows of three times whole_lanes(N) floats, which
// are filled with squares and then turned in place, row by row:
//
//   plain    squares, floats   |  inverse  |  (free)     from floats
//   split    high  |  inverse  |  low                    from doubles
//   wide     squares, doubles              |  inverse    from doubles
#pragma once

#include <type_traits>

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

template <class T>
PairTable<T> squares_of(const SquareRows& side);
template <>
inline PairTable<float> squares_of(const SquareRows& side) {
  return side.third(0);
}
template <>
inline PairTable<double> squares_of(const SquareRows& side) {
  return side.doubles();
}

// A row of squares of type T, each in one number, and the inverses.
template <class T>
struct WholeRow {
  using V = std::conditional_t<sizeof(T) == sizeof(double), DoubleVec, Vec>;
  const T* square;
  const float* inverse;

  WholeArm<V> arms(int64_t k) const { return {V::load(square + k), V::load(inverse + k)}; }
  WholeArm<V> half_arm(int64_t i) const {
    return {V(square[i]), V(static_cast<T>(0.5f * inverse[i]))};
  }
  Cosine<V> cosines(const WholeArm<V>& half, const WholeArm<V>& arms, int64_t k) const {
    return cosine_at_vertex(half, arms, V::load(square + k));
  }
};

struct PlainSquares {
  using V = Vec;
  using Row = WholeRow<float>;
  PairTable<float> square, inverse;

  // Turns what a side is filled with.
  static void make(const SquareRows& side, const SquareGrid& grid, bool* ok);
  explicit PlainSquares(const SquareRows& side) : square(side.third(0)), inverse(side.third(1)) {}
  Row row(int64_t i) const { return {square.row(i), inverse.row(i)}; }
  Row after(const Row& row) const {
    return {row.square + square.stride, row.inverse + inverse.stride};
  }
};

struct SplitSquares {
  using V = Vec;
  PairTable<float> high, inverse, low;

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
  Row after(const Row& row) const {
    return {row.high + high.stride, row.low + low.stride, row.inverse + inverse.stride};
  }
};

struct WideSquares {
  using V = DoubleVec;
  PairTable<double> square;
  PairTable<float> inverse;

  static void make(const SquareRows& side, const SquareGrid& grid, bool* ok);
  explicit WideSquares(const SquareRows& side) : square(side.doubles()), inverse(side.third(2)) {}

  struct Row : WholeRow<double> {
    Cosine<V> cosines(const WholeArm<V>& half, const WholeArm<V>& arms, int64_t k) const {
      return bounded(WholeRow<double>::cosines(half, arms, k));
    }
  };
  Row row(int64_t i) const { return {{square.row(i), inverse.row(i)}}; }
  Row after(const Row& row) const {
    return {{row.square + square.stride, row.inverse + inverse.stride}};
  }
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

// The range of [rows, rows] squares: the smallest above `nearest`; the largest, NaN or infinite
// where one is. of_rows: scratch, [2 * rows].
template <class T>
SquareRange square_range(const PairTable<T>& squares, int64_t rows, double nearest, double* of_rows,
                         bool* ok);

}  // namespace fastkd::cpu
