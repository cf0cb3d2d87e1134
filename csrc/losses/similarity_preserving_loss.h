// SPDX-License-Identifier: Apache-2.0
// Similarity-preserving knowledge distillation (Tung, Mori 2019, arXiv:1907.09682, eq. 1-4).
//
//   G = X X^T, each row divided by its norm: P_ij = G_ij / |G_i|, or 0 where |G_i| <= eps
//   loss = sum_ij (P_ij of the student - P_ij of the teacher)^2 / denominator
//   dloss/dG_ij = 2 (D_ij - P_ij sum_l D_il P_il) / |G_i|,   D = P of the student - P of the
//   teacher
#pragma once

#include "losses/similarity.h"

namespace fastkd {

struct SimilarityPreservingLoss {
  static constexpr bool kCosines = false, kNormalisesRows = true;
  static constexpr bool kCountsOpposites = false;

  struct Row {
    double inverse_student, inverse_teacher;  // 1 / norm of the row of G
  };

  double eps;

  explicit SimilarityPreservingLoss(const SimilarityOptions& o) : eps(o.eps) {}

  double scale() const { return 1.0; }
  double norm_eps() const { return eps; }
  bool wants_doubles() const { return false; }

  template <class V>
  FASTKD_HOST_DEVICE V weight(V entry) const {
    return entry * entry;
  }
  FASTKD_HOST_DEVICE Row row(double sum_student, double sum_teacher) const {
    return {inverse_norm(sum_student, eps), inverse_norm(sum_teacher, eps)};
  }
  template <class V>
  FASTKD_HOST_DEVICE V difference(const Row& row, V s, V t) const {
    return s * V(row.inverse_student) - t * V(row.inverse_teacher);
  }
  template <class V>
  FASTKD_HOST_DEVICE V value(const Row& row, V s, V t) const {
    const V d = difference(row, s, t);
    return d * d;
  }
  template <class V>
  FASTKD_HOST_DEVICE V projection(const Row& row, V s, V t) const {
    return difference(row, s, t) * (s * V(row.inverse_student));
  }
  template <class V>
  FASTKD_HOST_DEVICE V slope(const Row& row, V projection, V s, V t) const {
    return V(2.0 * row.inverse_student) *
           (difference(row, s, t) - projection * (s * V(row.inverse_student)));
  }
};

}  // namespace fastkd
