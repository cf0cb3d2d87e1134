// SPDX-License-Identifier: Apache-2.0
// The cosines between all examples of a batch, student against teacher.
//
//   loss = sum_ij criterion(cosine_ij of the student - cosine_ij of the teacher) / denominator
#pragma once

#include "losses/similarity.h"

namespace fastkd {

template <class C>
struct CosineSimilarityLoss {
  static constexpr bool kCosines = true, kNormalisesRows = false;
  static constexpr bool kCountsOpposites = false;
  using Row = NoRow;

  C criterion;
  double eps;

  explicit CosineSimilarityLoss(const SimilarityOptions& o) : criterion(o.beta), eps(o.eps) {}

  double scale() const { return criterion.scale(); }
  double norm_eps() const { return eps; }
  bool wants_doubles() const { return false; }

  template <class V>
  FASTKD_HOST_DEVICE V value(const Row&, V s, V t) const {
    const V difference = s - t;
    return criterion.value(criterion.slope(difference), difference);
  }
  template <class V>
  FASTKD_HOST_DEVICE V slope(const Row&, V, V s, V t) const {
    return criterion.slope(s - t);
  }
};

}  // namespace fastkd
