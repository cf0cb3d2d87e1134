// SPDX-License-Identifier: Apache-2.0
// Correlation congruence (Peng et al. 2019, arXiv:1904.01802, eq. 3 and 6) with the Gaussian kernel
// of unit vectors.
//
//   k_ij = exp(-gamma |x_i/|x_i| - x_j/|x_j||^2) = exp(-2 gamma (1 - cosine_ij))
//   loss = sum_ij (k_ij of the student - k_ij of the teacher)^2 / denominator
#pragma once

#include "losses/similarity.h"

namespace fastkd {

struct CorrelationLoss {
  static constexpr bool kCosines = true, kNormalisesRows = false;
  static constexpr bool kCountsOpposites = false;
  using Row = NoRow;

  double twice_gamma, eps;

  explicit CorrelationLoss(const SimilarityOptions& o) : twice_gamma(2.0 * o.gamma), eps(o.eps) {}

  double scale() const { return 1.0; }
  double norm_eps() const { return eps; }
  bool wants_doubles() const { return twice_gamma > 10.0; }

  template <class V>
  FASTKD_HOST_DEVICE V kernel(V cosine) const {
    return exp(V(twice_gamma) * (cosine - V(1.0)));
  }
  template <class V>
  FASTKD_HOST_DEVICE V value(const Row&, V s, V t) const {
    const V difference = kernel(s) - kernel(t);
    return difference * difference;
  }
  template <class V>
  FASTKD_HOST_DEVICE V slope(const Row&, V, V s, V t) const {
    const V student = kernel(s);
    return V(2.0 * twice_gamma) * student * (student - kernel(t));
  }
};

}  // namespace fastkd
