// SPDX-License-Identifier: Apache-2.0
// Relational knowledge distillation by distances (Park et al. 2019, arXiv:1904.05068, eq. 4-6).
//
//   d_ij = sqrt(max(|x_i - x_j|^2, eps)) for i != j (squared: without the root), d_ii = 0
//   u_ij = d_ij / mean of the positive d
//   loss = sum_ij criterion(u_ij of the student - u_ij of the teacher) / denominator
//
// With g_ij = dloss/du_ij and the mean m over P pairs:
//   dloss/dd_ij = g_ij / m - sum(g d) / (m^2 P)
// Pairs no further apart than sqrt(eps) count with that distance, and nothing moves them.
#pragma once

#include "losses/criterion.h"

namespace fastkd {

// V is a float or a double, or lanes of them.
struct RkdDistance {
  bool squared;
  double eps;

  // `square`: |x_i - x_j|^2 of a pair i != j.
  template <class V>
  FASTKD_HOST_DEVICE V distance(V square) const {
    const V kept = at_least(V(static_cast<Lane<V>>(eps)), square);
    return squared ? kept : sqrt(kept);
  }

  // ddistance/dsquare; 0 for the distance 0 of an example from itself.
  template <class V>
  FASTKD_HOST_DEVICE V slope(V distance) const {
    const V floor = this->distance(V(static_cast<Lane<V>>(0.0)));
    const V one = V(static_cast<Lane<V>>(1.0)), half = V(static_cast<Lane<V>>(0.5));
    return zero_unless_above(floor, distance, squared ? one : half / distance);
  }
};

}  // namespace fastkd
