// SPDX-License-Identifier: Apache-2.0
// The rows of two tables of similarities: their losses (similarity_rows), and what each entry pulls
// its examples with (similarity_pulls). A block a row. No table of slopes is stored: they are made
// again from the row's sums.
#pragma once

#include "core/workspace.h"
#include "cuda/pair_table.h"
#include "losses/similarity_losses.h"

namespace fastkd::cuda {

// What a row's sums made of it.
template <class Loss>
struct RowSums {
  typename Loss::Row row;
  double projection;
};

struct SimilaritySummary {
  double poison;  // NaN where the loss is not finite, else 0
};

template <class Loss>
struct SimilarityCall {
  // Where opposites count, large pulls nearly cancel. As doubles they need no direction: g = 0.
  using Pull = std::conditional_t<Loss::kCountsOpposites, double, float>;

  Loss loss;
  double scale;       // loss.scale() / denominator
  double grad_scale;  // the same; 0 where no gradient can be but rounding's: cosines of numbers
  bool distinct;      // entries of an example with itself don't count
  int64_t rows;
  PairTables<double> products;
  double *student_inverses, *teacher_inverses;  // [rows]: inverse_norm
  RowSums<Loss>* sums;                          // [rows]; kNormalisesRows
  double* values;                               // [rows]
  SimilaritySummary* summary;
  Pull* pulls;      // [stride, stride]; doubles over the teacher's products, each over its own
  Pull* stretches;  // [rows]

  SimilarityCall(Workspace& workspace, const Loss& loss, const PairArgs& args,
                 const SimilarityOptions& options)
      : loss(loss),
        scale(loss.scale() * inverse_relations(options.reduction, args.rows, 2)),
        grad_scale(Loss::kCosines && args.student.features == 1 ? 0.0 : scale),
        distinct(options.reduction == PairReduction::kMeanDistinct),
        rows(args.rows) {
    const int64_t stride = pair_stride(rows), elements = stride * stride;
    const bool with_grad = args.with_grad;
    double* const student = workspace.take<double>(elements);
    products = {student, workspace.take<double>(elements), stride};
    student_inverses = workspace.take<double>(rows);
    teacher_inverses = workspace.take<double>(rows);
    sums = workspace.take<RowSums<Loss>>(Loss::kNormalisesRows ? rows : 0);
    values = workspace.take<double>(rows);
    summary = workspace.take<SimilaritySummary>(1);
    if constexpr (Loss::kCountsOpposites) {
      pulls = products.teacher;
    } else {
      pulls = workspace.take<float>(with_grad ? elements : 0);
    }
    stretches = workspace.take<Pull>(with_grad ? rows : 0);
  }

  __device__ __forceinline__ double entry(const double* table, const double* inverses, int64_t i,
                                          int64_t j) const {
    const double product = table[i * products.stride + j];
    return Loss::kCosines ? product * (inverses[i] * inverses[j]) : product;
  }
  __device__ __forceinline__ double student_entry(int64_t i, int64_t j) const {
    return entry(products.student, student_inverses, i, j);
  }
  __device__ __forceinline__ double teacher_entry(int64_t i, int64_t j) const {
    return entry(products.teacher, teacher_inverses, i, j);
  }
};

template <class Loss>
__global__ void __launch_bounds__(kPairThreads, kLightBlocks)
    similarity_rows(const __grid_constant__ SimilarityCall<Loss> call) {
  Arena arena(shared_memory());
  double* const warps = arena.take<double>(4 * kPairWarps);
  const int64_t i = block_index();
  typename Loss::Row row{};
  if constexpr (Loss::kNormalisesRows) {
    double student = 0.0, teacher = 0.0;
    for (int64_t j = thread_index(); j < call.rows; j += kPairThreads) {
      student += call.loss.weight(call.student_entry(i, j));
      teacher += call.loss.weight(call.teacher_entry(i, j));
    }
    student = block_sum(student, warps);
    teacher = block_sum(teacher, warps + kPairWarps);
    row = call.loss.row(student, teacher);
  }
  double value = 0.0, projection = 0.0;
  for (int64_t j = thread_index(); j < call.rows; j += kPairThreads) {
    if (call.distinct && i == j) continue;
    const double s = call.student_entry(i, j), t = call.teacher_entry(i, j);
    value += call.loss.value(row, s, t);
    if constexpr (Loss::kNormalisesRows) projection += call.loss.projection(row, s, t);
  }
  value = block_sum(value, warps + 2 * kPairWarps);
  if constexpr (Loss::kNormalisesRows) projection = block_sum(projection, warps + 3 * kPairWarps);
  if (thread_index() == 0) {
    if constexpr (Loss::kNormalisesRows) {
      call.sums[i] = {row, projection};
    } else if (call.distinct) {  // NaN stays: a row alone has no other entry to be told by
      value += 0.0 * (call.student_entry(i, i) + call.teacher_entry(i, i));
    }
    call.values[i] = value;
  }
}

// dloss/dentry of (i, j) plus that of (j, i), which is the same number in another row.
template <class Loss>
__device__ __forceinline__ double both_slopes(const SimilarityCall<Loss>& call, int64_t i,
                                              int64_t j, double s, double t) {
  if (i == j && Loss::kCosines) return 0.0;  // constant
  if constexpr (Loss::kNormalisesRows) {
    const auto slope = [&](int64_t row) {
      const RowSums<Loss> sums = call.sums[row];
      const double all = call.loss.slope(sums.row, sums.projection, s, t);
      // An entry that does not count still is in its row's sum.
      if (call.distinct && i == j) return all - call.loss.slope(sums.row, 0.0, s, t);
      return all;
    };
    return slope(i) + slope(j);
  } else {
    return 2.0 * call.loss.slope({}, 0.0, s, t);
  }
}

template <class Loss>
__global__ void __launch_bounds__(kPairThreads, kLightBlocks)
    similarity_pulls(const __grid_constant__ SimilarityCall<Loss> call) {
  using Pull = typename SimilarityCall<Loss>::Pull;
  Arena arena(shared_memory());
  double* const warps = arena.take<double>(kPairWarps);
  const int64_t i = block_index();
  const double inverse = call.student_inverses[i];
  double stretch = 0.0;
  for (int64_t j = thread_index(); j < call.rows; j += kPairThreads) {
    const double s = call.student_entry(i, j);
    double pull = both_slopes(call, i, j, s, call.teacher_entry(i, j));
    const double other = call.student_inverses[j];
    const double cosine = Loss::kCosines ? s : s * (inverse * other);
    const float direction =
        Loss::kCountsOpposites ? 0.0f : direction_between(cosine, inverse, other);
    const double directed = static_cast<double>(direction);
    if constexpr (Loss::kCosines) {
      stretch += pull * (directed * other - inverse * s);
      pull *= inverse * other;
    } else {
      stretch += directed * pull;
    }
    auto scaled = static_cast<Pull>(call.grad_scale * pull);
    if constexpr (!Loss::kCountsOpposites) scaled = with_direction(scaled, direction);
    call.pulls[i * call.products.stride + j] = scaled;
  }
  stretch = block_sum(stretch, warps);
  if (thread_index() == 0) {
    const double factor = Loss::kCosines ? call.grad_scale * inverse : call.grad_scale;
    call.stretches[i] = static_cast<Pull>(factor * stretch + call.summary->poison);
  }
}

}  // namespace fastkd::cuda
