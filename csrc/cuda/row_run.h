// SPDX-License-Identifier: Apache-2.0
// One call of a loss of rows: they are weighed where the host cannot know their weights, a kernel
// does them, their losses are summed.
#pragma once

#include "cuda/launch.h"
#include "cuda/row_call.h"
#include "cuda/sums.h"

namespace fastkd::cuda {

// Whether every row starts at a multiple of `bytes`.
inline bool rows_aligned(const LogitView& view, int64_t bytes) {
  const int64_t size = element_size(view.dtype);
  const int64_t along = view.stride_class == 1 ? view.stride_inner : view.stride_class;
  return view.data == nullptr ||
         (reinterpret_cast<uintptr_t>(view.data) % bytes == 0 && along * size % bytes == 0 &&
          view.stride_outer * size % bytes == 0);
}

// What the host can't know: weights, targets, a denominator on the device.
inline bool needs_census(const LogitArgs& args, const RowOptions& rows) {
  return args.unscale != nullptr || rows.num_items_on_device != nullptr ||
         (rows.reduction == Reduction::kMean && rows.num_items < 0.0 &&
          (args.target != nullptr || args.sample_weight != nullptr));
}

// run(launcher, call) launches the kernel.
template <class Loss, class Run>
Outcome run_rows(const LogitArgs& args, const RowOptions& rows, const typename Loss::Params& params,
                 bool aligned, Run run) {
  Launcher launch(args.queue);
  const Workspace workspace(args.workspace, args.rows());
  const bool census = needs_census(args, rows);
  if (census) launch_census(launch, args, rows, Loss::grad_bound(params), workspace);
  const CallSummary* const summary = census ? workspace.summary : nullptr;
  const double inverse = census ? 0.0 : inverse_denominator(rows, static_cast<double>(args.rows()));
  const bool reduce = rows.reduction != Reduction::kNone;
  const RowCall<Loss> call{args,
                           params,
                           {args.target, args.sample_weight, rows.ignore_index},
                           summary,
                           static_cast<float>(inverse),
                           reduce ? workspace.row_loss : args.loss,
                           aligned};
  run(launch, call);
  if (reduce) launch_sum_of_losses(launch, args, summary, inverse, workspace);
  return launch.outcome();
}

}  // namespace fastkd::cuda
