// SPDX-License-Identifier: Apache-2.0
// The angle part of rkd_loss: every triplet of the batch, streamed over tables of pairs.
#pragma once

#include "cpu/angle_tables.h"

namespace fastkd::cpu {

// Slots for what parallel tasks sum up.
int64_t triplet_tasks(int64_t rows);

// Weights of another loss; data == nullptr: there is none.
struct OtherWeights {
  PairTable<float> table;
  double unit;  // they are times its square
};

// The loss times `scale`. with_grad: also what the gradient is gathered with, to tables.weights,
// plus `others`.
template <class Squares>
double angle_loss(const RkdOptions& options, int64_t rows, double scale, const SquareGrid& grid,
                  const AngleTables<Squares>& tables, bool with_grad, const OtherWeights& others,
                  bool* ok);

}  // namespace fastkd::cpu
