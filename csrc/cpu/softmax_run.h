// SPDX-License-Identifier: Apache-2.0
// One call of a softmax-type loss: rows are weighed, a driver does the work, the losses are
// reduced.
//
//   kd_loss.cpp (picks the functor) -> run_softmax -> RowDriver | ColumnDriver -> losses/*.h
#pragma once

#include "cpu/column_driver.h"
#include "cpu/row_driver.h"

namespace fastkd::cpu {

// Gradients above this bypass the caches: the consumer would find them evicted anyway.
constexpr int64_t kStreamingBytes = int64_t{16} << 20;

// Rows up to this are transposed into lanes: 128 x 10 takes 2.9 us so, 8.5 us along its classes
// (AVX-512, one thread); they break even at about 40 classes, for 8 rows at 24.
constexpr int64_t kShortRow = 24;

// drive(call) does the rows.
template <class Loss, class Drive>
Outcome run_rows(const LogitArgs& args, const RowOptions& rows, const typename Loss::Params& params,
                 Drive drive) {
  const RowWeights weights{args.target, args.sample_weight, rows.ignore_index};
  const RowCensus census = take_census(args, weights);
  if (census.outcome.status != Status::kOk) return census.outcome;
  const double inverse = inverse_denominator(rows, census.total_weight);
  float prescale = 1.0f;
  if (args.grad.data != nullptr && args.grad.dtype == Dtype::kFloat16) {
    prescale = float16_prescale(Loss::grad_bound(params) * census.largest_weight * inverse);
  }
  if (args.unscale != nullptr) *args.unscale = 1.0f / prescale;

  const bool reduce = rows.reduction != Reduction::kNone;
  const Scratch<float> row_losses(reduce ? args.rows() : 0);
  if (row_losses.data() == nullptr) return {Status::kOutOfMemory, -1};
  const int64_t grad_bytes = args.rows() * args.student.classes * element_size(args.grad.dtype);
  const SoftmaxCall<Loss> call{args,
                               params,
                               weights,
                               static_cast<float>(inverse * prescale),
                               reduce ? row_losses.data() : args.loss,
                               grad_bytes >= kStreamingBytes};
  if (call.wants_grad()) advise_huge_pages(args.grad.data, grad_bytes);
  const Outcome outcome = drive(call);
  if (outcome.status == Status::kOk && reduce) {
    // Where nothing counts the loss is 0, even if a row's is infinite.
    const double sum = inverse == 0.0 ? 0.0 : ordered_sum(row_losses.data(), args.rows());
    *args.loss = static_cast<float>(sum * inverse);
  }
  return outcome;
}

template <class Loss>
Outcome run_softmax(const LogitArgs& args, const RowOptions& rows,
                    const typename Loss::Params& params) {
  return run_rows<Loss>(args, rows, params, [&](const SoftmaxCall<Loss>& call) {
    const bool contiguous_classes = args.student.stride_class == 1 &&
                                    args.teacher.stride_class == 1 && args.grad.stride_class == 1;
    const bool along_classes = contiguous_classes && args.student.classes > kShortRow;
    return along_classes ? RowDriver<Loss>(call).run() : ColumnDriver<Loss>(call).run();
  });
}

}  // namespace fastkd::cpu
