// SPDX-License-Identifier: Apache-2.0
// The angle part of rkd_loss: every triplet of the batch, streamed over tables of pairs.
#pragma once

#include "cpu/pair_table.h"
#include "losses/rkd_angle_loss.h"

namespace fastkd::cpu {

// Squared distances as the angles want them; `inverse` is 0 on the diagonal and in the padding.
struct SplitTable {
  PairTable<float> high, low, inverse;
};

struct AngleTables {
  SplitTable student, teacher;
  // Sums over triplets. arms [vertex, neighbour]: dloss/dS of a side of the angle, in two parts;
  // ends [i, k], i < k: -dloss/dS across the angle.
  PairTable<float> across, along, ends;
  double* partials;  // scratch, [triplet_tasks(rows)]
};

int64_t triplet_tasks(int64_t rows);

// Splits the squares of one side; returns the unit they are in. Not finite: no grid holds them.
double split_squares(const PairTable<double>& squares, int64_t rows, double eps,
                     const SplitTable& out, double* of_rows, bool* ok);

// The loss times `scale`. Adds to `weights` what the gradient is gathered with, or writes it; data
// == nullptr: no gradient.
double angle_loss(const RkdOptions& options, int64_t rows, double scale, double unit,
                  const AngleTables& tables, const PairTable<float>& weights, bool add, bool* ok);

}  // namespace fastkd::cpu
