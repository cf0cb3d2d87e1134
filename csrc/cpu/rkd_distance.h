// SPDX-License-Identifier: Apache-2.0
// The distance part of rkd_loss over tables of distances.
#pragma once

#include "cpu/pair_table.h"
#include "losses/rkd_distance_loss.h"

namespace fastkd::cpu {

struct DistanceTables {
  PairTable<float> student, teacher;  // distances; their diagonal and padding are 0
  double* rows;                       // scratch, [2 * rows]
};

// The loss times `scale`. Writes to `weights` what the gradient is gathered with, times unit^2, a
// power of two; data == nullptr: no gradient. Sets `ok` to false if the pool reports a failure.
double distance_loss(const RkdOptions& options, int64_t rows, double scale,
                     const DistanceTables& tables, const PairTable<float>& weights, double unit,
                     bool* ok);

}  // namespace fastkd::cpu
