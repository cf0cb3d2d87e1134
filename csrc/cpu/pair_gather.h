// SPDX-License-Identifier: Apache-2.0
// From a table of weights to the gradient of the embeddings, on panels as cpu/pair_table.h.
#pragma once

#include "cpu/pair_table.h"

namespace fastkd::cpu {

// What is gathered into the gradient of a row, times a symmetric weight.
enum class Gather {
  kRows,         // x_j
  kDifferences,  // x_j - x_i: an offset of all x costs floats no digits
};

// out_i = sum_j of what is gathered + own_i x_i, summed in T; own == nullptr: 0. `rows` are those
// of the panels, [rows, features].
template <Gather kGather, class T>
bool gather(const Panels& x, const float* rows, const PairTable<T>& weights, const T* own,
            float* out);

}  // namespace fastkd::cpu
