// SPDX-License-Identifier: Apache-2.0
// Tables over all pairs of a batch: distances and products of embeddings.
//
// They are taken from panels of sixteen rows, features outermost, so that lanes are neighbouring
// rows and no sum crosses lanes.
#pragma once

#include "core/pair_args.h"
#include "cpu/parallel.h"
#include "cpu/vec_double.h"

namespace fastkd::cpu {

inline int64_t whole_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// [rows, rows], padded with zeros to whole lanes in both directions.
template <class T>
struct PairTable {
  T* data;
  int64_t stride;  // of rows: whole_lanes(rows), or more in a table that shares its rows' memory

  T* row(int64_t i) const { return data + i * stride; }
  static int64_t elements(int64_t rows) { return whole_lanes(rows) * whole_lanes(rows); }
};

struct Panels {
  float* data;  // [panels][features][kLanes], rows beyond the last are zeros
  int64_t rows, features;

  int64_t count() const { return whole_lanes(rows) / kLanes; }
  float* panel(int64_t i) const { return data + i * features * kLanes; }
  static int64_t elements(int64_t rows, int64_t features) { return whole_lanes(rows) * features; }
};

// Values that are summed in one accumulator before they join the total.
constexpr int64_t kRun = 128;

// One type's lanes, and how many rows of accumulators the registers hold.
template <class T>
struct LanesOf;
template <>
struct LanesOf<float> {
  using V = Vec;
  static constexpr int kRows = 8 / kParts;
};
template <>
struct LanesOf<double> {
  using V = DoubleVec;
  static constexpr int kRows = kDoubleParts > 4 ? 1 : 8 / kDoubleParts;
};

// Each returns false if the pool reports a failure.
bool pack_panels(const Embeddings& embeddings, const Panels& panels);

// |x_i - x_j|^2 by differences: inner products would cancel for near pairs and common offsets.
// T = double sums differences of doubles.
template <class T>
bool squared_distances(const Panels& x, const PairTable<T>& table);

// x_i . x_j, products and sums in T.
template <class T>
bool inner_products(const Panels& x, const PairTable<T>& table);

// The largest |x_i|^2, up to rounding; 0 where one is NaN. of_rows: scratch, [whole_lanes(rows)].
double largest_square(const Panels& x, double* of_rows, bool* ok);

// |mean of x|^2 / mean of |x|^2: near 1 where the batch differs by little from its mean.
double offset_share(const Panels& x);

// Calls that need about `cycles` each, in ranges worth a thread.
template <class Body>
bool parallel_by_cost(int64_t count, int64_t cycles, Body& body) {
  constexpr int64_t kWorthwhile = 40000;
  return parallel_for(count, kWorthwhile / (cycles + 1) + 1, body);
}

}  // namespace fastkd::cpu
