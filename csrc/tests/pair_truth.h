// SPDX-License-Identifier: Apache-2.0
// rkd_loss and its gradient by plain loops in double, with the unit vectors of the paper's formulas
// and not the squared distances that the kernels start from.
#pragma once

#include <cmath>
#include <vector>

#include "core/pair_args.h"

namespace fastkd::check {

// [rows, columns] in double.
struct Matrix {
  int64_t rows, columns;
  std::vector<double> values;

  Matrix(int64_t rows, int64_t columns)
      : rows(rows), columns(columns), values(static_cast<size_t>(rows * columns)) {}
  double& at(int64_t i, int64_t j) { return values[static_cast<size_t>(i * columns + j)]; }
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * columns + j)]; }
};

inline double dot(const Matrix& a, int64_t i, const Matrix& b, int64_t j) {
  double sum = 0.0;
  for (int64_t f = 0; f < a.columns; ++f) sum += a.at(i, f) * b.at(j, f);
  return sum;
}

// Of torch.nn.functional.
struct TrueCriterion {
  Criterion criterion;
  double beta;

  double value(double x) const {
    if (criterion == Criterion::kL2) return x * x;
    if (criterion == Criterion::kL1 || fabs(x) >= beta) {
      return fabs(x) - (criterion == Criterion::kL1 ? 0.0 : 0.5 * beta);
    }
    return 0.5 * x * x / beta;
  }
  // How fast the slope changes, at most.
  double bend() const {
    return criterion == Criterion::kL2 ? 2.0 : criterion == Criterion::kSmoothL1 ? 1.0 / beta : 0.0;
  }
  bool kink(double difference, double rounding) const {
    return criterion == Criterion::kL1 && fabs(difference) < rounding;
  }
  double slope(double x) const {
    if (criterion == Criterion::kL2) return 2.0 * x;
    if (criterion == Criterion::kSmoothL1 && fabs(x) < beta) return x / beta;
    return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : 0.0;
  }
};

// A loss and its gradient, and what rounding can be held against.
struct Truth {
  double loss = 0.0, terms = 0.0;  // terms: the loss if every relation differed by 1
  Matrix grad;
  std::vector<double> sizes;  // of the rows of grad, if nothing cancelled
  bool kinks = false;         // L1 of two relations that rounding may put in either order

  explicit Truth(const Matrix& x) : grad(x.rows, x.columns), sizes(static_cast<size_t>(x.rows)) {}
  double& size(int64_t i) { return sizes[static_cast<size_t>(i)]; }
};

inline Matrix true_squares(const Matrix& x) {
  Matrix squares(x.rows, x.rows);
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < x.rows; ++j) {
      for (int64_t f = 0; f < x.columns; ++f) {
        const double difference = x.at(i, f) - x.at(j, f);
        squares.at(i, j) += difference * difference;
      }
    }
  }
  return squares;
}

struct TrueDistances {
  Matrix table;
  double mean = 0.0;

  TrueDistances(const Matrix& squares, const RkdOptions& o) : table(squares) {
    double count = 0.0;
    for (int64_t i = 0; i < table.rows; ++i) {
      for (int64_t j = 0; j < table.rows; ++j) {
        double& d = table.at(i, j);
        d = i == j ? 0.0 : d > o.eps ? d : o.eps;
        if (!o.squared) d = std::sqrt(d);
        mean += d;
        count += d > 0.0 ? 1.0 : 0.0;
      }
    }
    mean = count > 0.0 ? mean / count : 1.0;
  }
};

inline void add_true_distances(const Matrix& x, const Matrix& squares,
                               const Matrix& teacher_squares, const RkdOptions& o, Truth& truth) {
  const int64_t n = x.rows;
  const TrueDistances student(squares, o), teacher(teacher_squares, o);
  const TrueCriterion criterion{o.criterion, static_cast<double>(o.beta)};
  const double scale = o.distance_weight * inverse_relations(o.reduction, n, 2);
  const double pairs = static_cast<double>(n) * static_cast<double>(n - 1);
  Matrix slopes(n, n);
  double mean_slope = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      if (i == j) continue;
      const double u = student.table.at(i, j) / student.mean;
      const double difference = u - teacher.table.at(i, j) / teacher.mean;
      truth.kinks |= criterion.kink(difference, 1e-6 * u);
      truth.loss += scale * criterion.value(difference);
      truth.terms += scale;
      slopes.at(i, j) = scale * criterion.slope(difference);
      mean_slope += slopes.at(i, j) * u / pairs;
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      if (i == j || squares.at(i, j) <= o.eps) continue;
      const double d = student.table.at(i, j);
      const double by = (o.squared ? 2.0 : 1.0 / d) / student.mean;
      const double slope = (slopes.at(i, j) - mean_slope) * by;
      const double size = (fabs(slopes.at(i, j)) + fabs(mean_slope)) * by +
                          scale * criterion.bend() * d / student.mean * by;
      truth.size(i) += 2.0 * size * std::sqrt(squares.at(i, j));
      for (int64_t f = 0; f < x.columns; ++f) {
        const double term = slope * (x.at(i, f) - x.at(j, f));
        truth.grad.at(i, f) += term;
        truth.grad.at(j, f) -= term;
      }
    }
  }
}

// Unit vectors from every vertex to every neighbour; 0 where there is no direction.
struct TrueArms {
  Matrix units;  // [rows * rows, features]
  Matrix inverses;

  TrueArms(const Matrix& x, const Matrix& squares, double eps)
      : units(x.rows * x.rows, x.columns), inverses(x.rows, x.rows) {
    for (int64_t j = 0; j < x.rows; ++j) {
      for (int64_t i = 0; i < x.rows; ++i) {
        if (squares.at(j, i) <= eps * eps) continue;
        const double inverse = inverses.at(j, i) = 1.0 / std::sqrt(squares.at(j, i));
        for (int64_t f = 0; f < x.columns; ++f) {
          units.at(j * x.rows + i, f) = (x.at(i, f) - x.at(j, f)) * inverse;
        }
      }
    }
  }
};

inline void add_true_angles(const Matrix& x, const Matrix& squares, const Matrix& y,
                            const Matrix& teacher_squares, const RkdOptions& o, Truth& truth) {
  const int64_t n = x.rows;
  const TrueArms student(x, squares, o.eps), teacher(y, teacher_squares, o.eps);
  const TrueCriterion criterion{o.criterion, static_cast<double>(o.beta)};
  const double scale = o.angle_weight * inverse_relations(o.reduction, n, 3);
  std::vector<double> slopes(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = j * n + i;
      double along = 0.0;
      for (int64_t k = 0; k < n; ++k) {
        slopes[static_cast<size_t>(k)] = 0.0;
        if (i == k && o.reduction == PairReduction::kMeanDistinct) continue;
        const bool itself = i == k;
        const double cosine = itself ? (student.inverses.at(j, i) > 0.0 ? 1.0 : 0.0)
                                     : dot(student.units, at, student.units, j * n + k);
        const double target = itself ? (teacher.inverses.at(j, i) > 0.0 ? 1.0 : 0.0)
                                     : dot(teacher.units, at, teacher.units, j * n + k);
        truth.loss += scale * criterion.value(cosine - target);
        truth.terms += scale;
        if (itself) continue;
        const double slope = slopes[static_cast<size_t>(k)] =
            2.0 * scale * criterion.slope(cosine - target) * student.inverses.at(j, i);
        along += slope * cosine;
        const double size =
            fabs(slope) + 2.0 * scale * criterion.bend() * student.inverses.at(j, i);
        truth.size(i) += size;
        truth.size(j) += size;
        truth.kinks |= x.columns > 1 && slope != 0.0 && criterion.kink(cosine - target, 1e-6);
      }
      // Both orders of the ends: the arm to i is also the second one.
      for (int64_t f = 0; f < x.columns; ++f) {
        double term = -along * student.units.at(at, f);
        for (int64_t k = 0; k < n; ++k) {
          term += slopes[static_cast<size_t>(k)] * student.units.at(j * n + k, f);
        }
        truth.grad.at(i, f) += term;
        truth.grad.at(j, f) -= term;
      }
    }
  }
}

inline Truth true_rkd(const Matrix& x, const Matrix& y, const RkdOptions& o) {
  Truth truth(x);
  const Matrix squares = true_squares(x), teacher_squares = true_squares(y);
  if (o.distance_weight != 0.0) add_true_distances(x, squares, teacher_squares, o, truth);
  if (o.angle_weight != 0.0) add_true_angles(x, squares, y, teacher_squares, o, truth);
  return truth;
}

}  // namespace fastkd::check
