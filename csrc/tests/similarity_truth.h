// SPDX-License-Identifier: Apache-2.0
// The losses between tables of similarities and their gradients by plain loops in double, back
// through each step of the papers' formulas.
#pragma once

#include "tests/pair_truth.h"

namespace fastkd::check {

// Rows divided by their norms, or 0 where these are at most eps; the inverse norms beside them.
struct TrueDirections {
  Matrix units;
  std::vector<double> inverses;

  TrueDirections(const Matrix& x, double eps) : units(x), inverses(static_cast<size_t>(x.rows)) {
    for (int64_t i = 0; i < x.rows; ++i) {
      const double norm = std::sqrt(dot(x, i, x, i));
      const double inverse = inverses[static_cast<size_t>(i)] = norm > eps ? 1.0 / norm : 0.0;
      for (int64_t f = 0; f < x.columns; ++f) units.at(i, f) = x.at(i, f) * inverse;
    }
  }
};

inline Matrix inner_products(const Matrix& x) {
  Matrix table(x.rows, x.rows);
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < x.rows; ++j) table.at(i, j) = dot(x, i, x, j);
  }
  return table;
}

// The row of a table whose entries were multiplied by `inverse`, a function of the row, as slopes
// of the entries before: slope - own * sum(slope * result), times `inverse`; `own` is d(1 /
// inverse).
template <class Own>
void through_normaliser(std::vector<double>& slopes, const std::vector<double>& results,
                        double inverse, const Own& own) {
  double projection = 0.0;
  for (size_t j = 0; j < slopes.size(); ++j) projection += slopes[j] * results[j];
  for (size_t j = 0; j < slopes.size(); ++j) {
    slopes[j] = (slopes[j] - projection * own(results[j])) * inverse;
  }
}

// One row of two tables of similarities: adds its loss, returns dloss/dentry of the student's.
inline std::vector<double> true_similarity_row(const SimilarityOptions& o, const Matrix& s,
                                               const Matrix& t, int64_t i, double scale,
                                               double& loss) {
  const size_t n = static_cast<size_t>(s.rows);
  std::vector<double> a(n), b(n), slopes(n);
  const auto counts = [&](size_t j) {
    return o.reduction != PairReduction::kMeanDistinct || j != static_cast<size_t>(i);
  };
  double sum_a = 0.0, sum_b = 0.0;
  for (size_t j = 0; j < n; ++j) {
    a[j] = s.at(i, static_cast<int64_t>(j));
    b[j] = t.at(i, static_cast<int64_t>(j));
    if (o.loss == Similarity::kPkt) {
      a[j] = 0.5 * (a[j] + 1.0);
      b[j] = 0.5 * (b[j] + 1.0);
    } else if (o.loss == Similarity::kCorrelation) {
      a[j] = std::exp(-2.0 * o.gamma * (1.0 - a[j]));
      b[j] = std::exp(-2.0 * o.gamma * (1.0 - b[j]));
    }
    const bool squares = o.loss == Similarity::kSimilarityPreserving;
    sum_a += squares ? a[j] * a[j] : a[j];
    sum_b += squares ? b[j] * b[j] : b[j];
  }
  const TrueCriterion criterion{o.criterion, o.beta};
  switch (o.loss) {
    case Similarity::kSimilarityPreserving: {
      const auto inverse = [&](double sum) {
        return std::sqrt(sum) > o.eps ? 1.0 / std::sqrt(sum) : 0.0;
      };
      for (size_t j = 0; j < n; ++j) {
        a[j] *= inverse(sum_a);
        const double difference = counts(j) ? a[j] - b[j] * inverse(sum_b) : 0.0;
        loss += scale * difference * difference;
        slopes[j] = 2.0 * scale * difference;
      }
      through_normaliser(slopes, a, inverse(sum_a), [](double p) { return p; });
      break;
    }
    case Similarity::kPkt:
      for (size_t j = 0; j < n; ++j) {
        a[j] /= sum_a;
        b[j] /= sum_b;
        if (!counts(j)) continue;
        loss += scale * b[j] * std::log((b[j] + o.eps) / (a[j] + o.eps));
        slopes[j] = -scale * b[j] / (a[j] + o.eps);
      }
      through_normaliser(slopes, a, 0.5 / sum_a, [](double) { return 1.0; });
      break;
    case Similarity::kCorrelation:
      for (size_t j = 0; j < n; ++j) {
        if (!counts(j)) continue;
        loss += scale * (a[j] - b[j]) * (a[j] - b[j]);
        slopes[j] = 2.0 * scale * (a[j] - b[j]) * 2.0 * o.gamma * a[j];
      }
      break;
    case Similarity::kCosine:
      for (size_t j = 0; j < n; ++j) {
        if (!counts(j)) continue;
        loss += scale * criterion.value(a[j] - b[j]);
        slopes[j] = scale * criterion.slope(a[j] - b[j]);
      }
      break;
  }
  return slopes;
}

inline Truth true_similarity(const Matrix& x, const Matrix& y, const SimilarityOptions& o) {
  Truth truth(x);
  const int64_t n = x.rows;
  const bool cosines = o.loss != Similarity::kSimilarityPreserving;
  const double eps = o.loss == Similarity::kPkt ? 1e-12 : o.eps;
  const TrueDirections student(x, eps), teacher(y, eps);
  const Matrix s = inner_products(cosines ? student.units : x);
  const Matrix t = inner_products(cosines ? teacher.units : y);
  const double scale = inverse_relations(o.reduction, n, 2);
  truth.terms = scale * static_cast<double>(n * n);
  Matrix slopes(n, n);
  for (int64_t i = 0; i < n; ++i) {
    const std::vector<double> row = true_similarity_row(o, s, t, i, scale, truth.loss);
    for (int64_t j = 0; j < n; ++j) {
      slopes.at(i, j) = row[static_cast<size_t>(j)];
      truth.kinks |= o.loss == Similarity::kCosine && o.criterion == Criterion::kL1 && i != j &&
                     fabs(s.at(i, j) - t.at(i, j)) < 1e-12;
    }
  }
  const Matrix& from = cosines ? student.units : x;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> of_row(static_cast<size_t>(x.columns));
    double along = 0.0;
    for (int64_t j = 0; j < n; ++j) {
      // A row less its own part of that direction: what is lost here projects to nothing.
      const double own = cosines ? s.at(i, j) : 0.0;
      const double slope = slopes.at(i, j) + slopes.at(j, i);
      double length = 1e-8;  // of what cancels even here
      for (int64_t f = 0; f < x.columns; ++f) {
        const double other = from.at(j, f) - own * from.at(i, f);
        of_row[static_cast<size_t>(f)] += slope * other;
        length += own < 0.0 ? fabs(from.at(i, f)) + fabs(from.at(j, f)) : fabs(other);
      }
      truth.size(i) += (fabs(slope) + 1e-8 * scale) * length;  // entries are doubles, too
    }
    for (int64_t f = 0; f < x.columns; ++f) along += of_row[static_cast<size_t>(f)] * from.at(i, f);
    const double inverse = cosines ? student.inverses[static_cast<size_t>(i)] : 1.0;
    truth.size(i) *= inverse;
    for (int64_t f = 0; f < x.columns; ++f) {
      const double projected = cosines ? along * from.at(i, f) : 0.0;
      truth.grad.at(i, f) = (of_row[static_cast<size_t>(f)] - projected) * inverse;
    }
  }
  return truth;
}

}  // namespace fastkd::check
