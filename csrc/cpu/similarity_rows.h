// SPDX-License-Identifier: Apache-2.0
// The rows of two tables of similarities: their losses, and what the gradient is gathered with.
#pragma once

#include "core/workspace.h"
#include "cpu/pair_table.h"
#include "losses/similarity_losses.h"

namespace fastkd::cpu {

// One batch: inner products of its rows, and the inverse norms.
template <class T>
struct Side {
  PairTable<T> products;
  double* inverse_norms;

  // Sixteen entries of row i, from column j on.
  template <bool kCosines>
  DoubleVec entries(int64_t i, int64_t j) const {
    const DoubleVec product = DoubleVec::load(products.row(i) + j);
    if (!kCosines) return product;
    return product * (DoubleVec(inverse_norms[i]) * DoubleVec::load(inverse_norms + j));
  }
};

struct SimilarityWorkspace {
  Panels panels[2];  // of student and teacher
  double* products[2];
  double* inverse_norms[2];
  PairTable<double> slopes;  // dloss/dentry; kNormalisesRows
  double* own;               // room for either type
  double* row_losses;

  SimilarityWorkspace(Workspace& workspace, const PairArgs& args) {
    const int64_t n = args.rows, stride = whole_lanes(n);
    const Embeddings* const sides[2] = {&args.student, &args.teacher};
    for (int side = 0; side < 2; ++side) {
      const int64_t features = sides[side]->features;
      panels[side] = {workspace.take<float>(Panels::elements(n, features)), n, features};
      products[side] = workspace.take<double>(stride * stride);
      inverse_norms[side] = workspace.take<double>(stride);
    }
    slopes = {products[1], stride};  // where the teacher's row is done
    own = workspace.take<double>(stride);
    row_losses = workspace.take<double>(stride);
  }

  // Floats of both sides share the student's memory.
  Side<double> side(int k, double) const {
    return {{products[k], slopes.stride}, inverse_norms[k]};
  }
  Side<float> side(int k, float) const {
    float* const memory = reinterpret_cast<float*>(products[0]);
    return {{memory + k * slopes.stride * slopes.stride, slopes.stride}, inverse_norms[k]};
  }
};

template <class Loss, class T>
class SimilarityRows {
 public:
  SimilarityRows(const Loss& loss, const SimilarityWorkspace& memory, int64_t rows, double scale,
                 bool distinct, bool with_grad)
      : loss_(loss),
        memory_(memory),
        student_(memory.side(0, T{})),
        teacher_(memory.side(1, T{})),
        rows_(rows),
        scale_(scale),
        distinct_(distinct),
        with_grad_(with_grad) {}

  // What the gradient is gathered with: entry by entry in the place of the student's.
  const PairTable<T>& weights() const { return student_.products; }
  T* own() const { return reinterpret_cast<T*>(memory_.own); }

  // The loss of row i, and the slopes or weights of its entries.
  double row(int64_t i) const {
    typename Loss::Row row{};
    double projection = 0.0;
    if constexpr (Loss::kNormalisesRows) {
      DoubleVec student(0.0), teacher(0.0);
      each_entry(i, [&](int64_t, auto first, DoubleVec s, DoubleVec t) {
        student = student + first(loss_.weight(s));
        teacher = teacher + first(loss_.weight(t));
      });
      row = loss_.row(sum_lanes(student), sum_lanes(teacher));
    }
    DoubleVec value(0.0), projected(0.0);
    each_entry(i, [&](int64_t, auto first, DoubleVec s, DoubleVec t) {
      value = value + first(loss_.value(row, s, t));
      if constexpr (Loss::kNormalisesRows)
        projected = projected + first(loss_.projection(row, s, t));
    });
    projection = sum_lanes(projected);
    double sum = sum_lanes(value);
    const double s_itself = entry_of_itself(student_, i), t_itself = entry_of_itself(teacher_, i);
    if (distinct_) {
      sum -= loss_.value(row, s_itself, t_itself);
      if constexpr (Loss::kNormalisesRows) projection -= loss_.projection(row, s_itself, t_itself);
    }
    if (with_grad_) {
      if constexpr (Loss::kNormalisesRows) {
        each_entry(i, [&](int64_t j, auto first, DoubleVec s, DoubleVec t) {
          first(loss_.slope(row, DoubleVec(projection), s, t)).store(memory_.slopes.row(i) + j);
        });
        double& of_itself = memory_.slopes.row(i)[i];
        if (Loss::kCosines) {
          of_itself = 0.0;       // constant
        } else if (distinct_) {  // does not count, but is in the sum of its row
          of_itself -= loss_.slope(row, 0.0, s_itself, t_itself);
        }
      } else {
        weigh(i, [&](int64_t, DoubleVec s, DoubleVec t) {
          const DoubleVec slope = loss_.slope(row, DoubleVec(0.0), s, t);
          return slope + slope;  // the table is symmetric
        });
      }
    }
    return sum;
  }

  // Weights of the entries of sixteen rows from their slopes and the transposed ones.
  void panel(int64_t i) const {
    for (int r = 0; r < kLanes && i + r < rows_; ++r) {
      weigh(i + r, [&](int64_t j, DoubleVec, DoubleVec) {
        double column[kLanes];
        for (int c = 0; c < kLanes; ++c) {
          column[c] = j + c < rows_ ? memory_.slopes.row(j + c)[i + r] : 0.0;
        }
        return DoubleVec::load(memory_.slopes.row(i + r) + j) + DoubleVec::load(column);
      });
    }
  }

 private:
  // visit(j, first, s, t) over sixteen entries at a time; first(x) drops what is beyond the row.
  template <class Visit>
  void each_entry(int64_t i, const Visit& visit) const {
    const auto entries = [&](const Side<T>& side, int64_t j) {
      return side.template entries<Loss::kCosines>(i, j);
    };
    int64_t j = 0;
    for (; j + kLanes <= rows_; j += kLanes) {
      visit(j, [](DoubleVec x) { return x; }, entries(student_, j), entries(teacher_, j));
    }
    if (j == rows_) return;
    const FirstLanes left{static_cast<int>(rows_ - j)};
    visit(
        j, [left](DoubleVec x) { return keep(left, x); }, entries(student_, j),
        entries(teacher_, j));
  }

  static double entry_of_itself(const Side<T>& side, int64_t i) {
    const double square = static_cast<double>(side.products.row(i)[i]);
    const double inverse = side.inverse_norms[i];
    return Loss::kCosines ? square * inverse * inverse : square;
  }

  // What the gradient of row i is gathered with; sum(j, s, t) = slope of (i, j) + slope of (j, i).
  template <class Sum>
  void weigh(int64_t i, const Sum& sum) const {
    const double inverse = student_.inverse_norms[i];
    DoubleVec own(0.0);
    each_entry(i, [&](int64_t j, auto first, DoubleVec s, DoubleVec t) {
      DoubleVec both = first(sum(j, s, t));
      if constexpr (Loss::kCosines) {
        double lanes[kLanes];
        both.store(lanes);
        if (i >= j && i < j + kLanes) lanes[i - j] = 0.0;  // constant
        both = DoubleVec::load(lanes);
        own = own - both * s;
        both = both * (DoubleVec(inverse) * DoubleVec::load(student_.inverse_norms + j));
      }
      store(both * DoubleVec(scale_), weights().row(i) + j);
    });
    this->own()[i] = static_cast<T>(scale_ * inverse * inverse * sum_lanes(own));
  }

  static void store(DoubleVec x, double* out) { x.store(out); }
  static void store(DoubleVec x, float* out) { to_single(x).store(out); }

  Loss loss_;
  const SimilarityWorkspace& memory_;
  Side<T> student_, teacher_;
  int64_t rows_;
  double scale_;
  bool distinct_, with_grad_;
};

}  // namespace fastkd::cpu
