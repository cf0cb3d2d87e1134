// SPDX-License-Identifier: Apache-2.0
// Probabilistic knowledge transfer (Passalis, Tefas 2018, arXiv:1803.10837, eq. 3-6) with the
// cosine kernel.
//
//   k_ij = (cosine_ij + 1) / 2,  p_ij = k_ij / sum_j k_ij of the teacher, q_ij of the student
//   loss = sum_ij p_ij log((p_ij + eps) / (q_ij + eps)) / denominator
//   dloss/dcosine_ij = (sum_l q_il p_il / (q_il + eps) - p_ij / (q_ij + eps)) / (2 sum_l k_il)
#pragma once

#include "losses/similarity.h"

namespace fastkd {

struct PktLoss {
  static constexpr bool kCosines = true, kNormalisesRows = true;
  static constexpr bool kCountsOpposites = true;

  struct Row {
    double inverse_student, inverse_teacher;  // 1 / sum of k
  };

  double eps;

  explicit PktLoss(const SimilarityOptions& o) : eps(o.eps) {}

  double scale() const { return 1.0; }
  double norm_eps() const { return 1e-12; }  // eps is of the probabilities
  bool wants_doubles() const { return false; }

  template <class V>
  FASTKD_HOST_DEVICE V weight(V entry) const {
    return V(0.5) * at_least(V(0.0), entry + V(1.0));  // rounding may leave less than -1
  }
  FASTKD_HOST_DEVICE Row row(double sum_student, double sum_teacher) const {
    return {1.0 / sum_student, 1.0 / sum_teacher};
  }
  template <class V>
  FASTKD_HOST_DEVICE V value(const Row& row, V s, V t) const {
    const V p = weight(t) * V(row.inverse_teacher), q = weight(s) * V(row.inverse_student);
    return p * log((p + V(eps)) / (q + V(eps)));
  }
  template <class V>
  FASTKD_HOST_DEVICE V projection(const Row& row, V s, V t) const {
    const V p = weight(t) * V(row.inverse_teacher), q = weight(s) * V(row.inverse_student);
    return q * p / (q + V(eps));
  }
  template <class V>
  FASTKD_HOST_DEVICE V slope(const Row& row, V projection, V s, V t) const {
    const V p = weight(t) * V(row.inverse_teacher), q = weight(s) * V(row.inverse_student);
    return V(0.5 * row.inverse_student) * (projection - p / (q + V(eps)));
  }
};

}  // namespace fastkd
