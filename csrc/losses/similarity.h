// SPDX-License-Identifier: Apache-2.0
// What the losses between tables of similarities have in common, and what each must say.
//
// A table is N x N. Its entries s_ij are inner products of two examples of the batch, or cosines
// where a loss says kCosines: inner products times r_i r_j, r = 1 / norm. Both are doubles: what
// batches with a large common offset differ by is far below a float's last digit.
//
// A loss is a struct made from SimilarityOptions, with V = double or lanes of doubles:
//   kCosines           entries are cosines; the diagonal is then constant
//   kNormalisesRows    entries are divided by a sum over their row, else Row is empty and unused
//   kCountsOpposites   how far a cosine is from -1 counts, to digits that a float has not there
//   weight(entry)      what is summed over a row of either table (kNormalisesRows)
//   row(sum_s, sum_t)  from these sums to what the following are given
//   value(row, s, t)   what the entry adds to the loss
//   projection(row, s, t)  summed over the row, then given to slope (kNormalisesRows)
//   slope(row, projection, s, t)  dloss/ds of the entry
//   wants_doubles()    a float's error in an entry would be magnified: entries are to be doubles
//   norm_eps()         rows no longer than this have no direction
//   scale()            factor of all values and slopes, besides the denominator
//
// Gradient. With M_ij = dloss/dentry, T = M + M^T (cosines: T_ii = 0) the embeddings get
//   inner products  dX_i = sum_j T_ij (x_j - x_i) + (sum_j T_ij) x_i
//   cosines         dX_i = sum_j W_ij (x_j - g_ij x_i) + b_i x_i,   W_ij = T_ij r_i r_j,
//                   b_i = r_i sum_j T_ij (g_ij r_j - r_i cosine_ij)
//                   with g = -1 where the cosine is near -1, else 1: a pair that goes one way or
//                   opposite ways moves by a small difference of large vectors
//                   and dX = 0 where x has one feature: its cosines are -1, 0 or 1
// with T and b summed in double, W rounded to float: an offset of all x then costs no digits.
//
// A part that does not depend on the entry is written for the host; V is converted by splat.
#pragma once

#include "losses/criterion.h"

namespace fastkd {

// 1 / norm; 0 for a row no longer than eps, which has no direction: its cosines are 0 and nothing
// moves it.
FASTKD_HOST_DEVICE double inverse_norm(double square, double eps) {
  return square > eps * eps ? 1.0 / ::sqrt(square) : square != square ? square : 0.0;
}

struct NoRow {};

// W and g in one float: g = -1 is a 1 in the last bit, which W can spare.
FASTKD_HOST_DEVICE float with_direction(float weight, bool opposite) {
  const uint32_t bits = bit_cast<uint32_t>(weight);
  return bit_cast<float>(opposite ? bits | 1u : bits & ~1u);
}
FASTKD_HOST_DEVICE float direction_of(float weight) {
  return (bit_cast<uint32_t>(weight) & 1u) != 0 ? -1.0f : 1.0f;
}
// Cosines below this go opposite ways.
constexpr double kOpposite = -0.9;

}  // namespace fastkd
