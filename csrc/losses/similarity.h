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
//   inner products  dX_i = sum_j T_ij (x_j - g_ij x_i) + (sum_j T_ij g_ij) x_i
//   cosines         dX_i = sum_j W_ij (x_j - g_ij x_i) + b_i x_i,   W_ij = T_ij r_i r_j,
//                   b_i = r_i sum_j T_ij (g_ij r_j - r_i cosine_ij)
//                   and dX = 0 where x has one feature: its cosines are -1, 0 or 1
// for any g, and with T and b summed in double. g = 0 will do in doubles. With W rounded to float,
// and all x far from the origin, it would cost digits that the direction below saves: a pair that
// goes one way or opposite ways moves by a small difference of large vectors.
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

// Cosines below this go opposite ways.
constexpr double kOpposite = -0.9;

// g of a pair with the inverse norms r and s: -1, 1, or 0 where one is much shorter, which would
// drown in a difference.
FASTKD_HOST_DEVICE float direction_between(double cosine, double r, double s) {
  constexpr double kMuch = 8.0;
  return r > kMuch * s || s > kMuch * r ? 0.0f : cosine < kOpposite ? -1.0f : 1.0f;
}

// W and g in one float: the one next to W whose last two bits say 1 (0), -1 (1) or 0 (2).
FASTKD_HOST_DEVICE float with_direction(float weight, float direction) {
  const uint32_t code = direction == 0.0f ? 2u : direction < 0.0f ? 1u : 0u;
  const uint32_t half = weight - weight == 0.0f ? 2u - code : 0u;  // else NaN would be a number
  return bit_cast<float>(((bit_cast<uint32_t>(weight) + half) & ~3u) | code);
}
FASTKD_HOST_DEVICE float direction_of(float weight) {
  const uint32_t bits = bit_cast<uint32_t>(weight);
  return (bits & 2u) != 0 ? 0.0f : (bits & 1u) != 0 ? -1.0f : 1.0f;
}

}  // namespace fastkd
