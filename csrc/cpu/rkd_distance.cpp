// SPDX-License-Identifier: Apache-2.0
#include "cpu/rkd_distance.h"

namespace fastkd::cpu {

namespace {

// Sums `count` numbers for each row, then over the rows in their order.
template <int kCount, class Row>
bool sum_rows(int64_t rows, double* of_rows, double* sums, const Row& row) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row(i, of_rows + i * kCount);
  };
  const bool ok = parallel_by_cost(rows, rows, body);
  for (int k = 0; k < kCount; ++k) sums[k] = 0.0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int k = 0; k < kCount; ++k) sums[k] += of_rows[i * kCount + k];
  }
  return ok;
}

double sum_of_row(const PairTable<float>& table, int64_t i) {
  DoubleVec sum(0.0);
  for (int64_t j = 0; j < table.stride; j += kLanes) {
    sum = sum + DoubleVec::load(table.row(i) + j);
  }
  return sum_lanes(sum);
}

template <class C>
double loss_with(const C& criterion, const RkdDistance& distance, int64_t rows, double scale,
                 const DistanceTables& tables, const PairTable<float>& weights, double unit,
                 bool* ok) {
  const PairTable<float>&student = tables.student, &teacher = tables.teacher;
  const double pairs = static_cast<double>(rows) * static_cast<double>(rows - 1);
  if (rows < 2) {
    if (weights.data != nullptr) Vec(0.0f).store(weights.row(0));
    return 0.0;
  }
  double totals[2];
  *ok &= sum_rows<2>(rows, tables.rows, totals, [&](int64_t i, double* out) {
    out[0] = sum_of_row(student, i);
    out[1] = sum_of_row(teacher, i);
  });
  const Vec by_student(static_cast<float>(pairs / totals[0]));
  const Vec by_teacher(static_cast<float>(pairs / totals[1]));
  const auto difference = [&](int64_t i, int64_t j) {
    return Vec::load(student.row(i) + j) * by_student - Vec::load(teacher.row(i) + j) * by_teacher;
  };

  double sums[2];  // of the losses, and of slope * distance
  *ok &= sum_rows<2>(rows, tables.rows, sums, [&](int64_t i, double* out) {
    DoubleVec loss(0.0), through_mean(0.0);
    for (int64_t j = 0; j < student.stride; j += kLanes) {
      const Vec d = difference(i, j);
      const Vec c = criterion.slope(d);
      float lanes[2][kLanes];
      criterion.value(c, d).store(lanes[0]);
      (c * Vec::load(student.row(i) + j)).store(lanes[1]);
      loss = loss + DoubleVec::load(lanes[0]);
      through_mean = through_mean + DoubleVec::load(lanes[1]);
    }
    out[0] = sum_lanes(loss);
    out[1] = sum_lanes(through_mean);
  });
  scale *= criterion.scale();
  if (weights.data != nullptr) {
    const double inverse_mean = pairs / totals[0];
    const Vec per_distance(static_cast<float>(unit * inverse_mean));
    const double through_mean = sums[1] * inverse_mean * inverse_mean / pairs;
    const Vec mean_slope(static_cast<float>(unit * through_mean));
    const Vec units(static_cast<float>(unit));
    // S_ij stands at (i, j) and (j, i), and moves x_i by 2 (x_i - x_j).
    const Vec factor(static_cast<float>(-4.0 * scale));
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < student.stride; j += kLanes) {
          const Vec c = criterion.slope(difference(i, j));
          const Vec slope = units * distance.slope(Vec::load(student.row(i) + j));
          (factor * (c * per_distance - mean_slope) * slope).store(weights.row(i) + j);
        }
      }
    };
    *ok &= parallel_by_cost(rows, rows, body);
  }
  return scale * sums[0];
}

}  // namespace

double distance_loss(const RkdOptions& options, int64_t rows, double scale,
                     const DistanceTables& tables, const PairTable<float>& weights, double unit,
                     bool* ok) {
  const RkdDistance distance{options.squared, options.eps};
  return with_criterion(options.criterion, options.beta, [&](auto criterion) {
    return loss_with(criterion, distance, rows, scale, tables, weights, unit, ok);
  });
}

}  // namespace fastkd::cpu
