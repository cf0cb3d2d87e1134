// SPDX-License-Identifier: Apache-2.0
#include "cuda/kd_loss.h"

namespace fastkd {

int64_t workspace_bytes(int64_t rows) { return cuda::Workspace::bytes(rows); }

Outcome kd_loss(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options) {
  LogitArgs call = args;
  KdLossOptions chosen = options;
  const bool decoupled = options.divergence == Divergence::kDecoupled;
  if (options.soft_weight == 0.0f && !decoupled) {  // a teacher that weighs 0 is not read
    call.teacher = call.student;
    chosen.divergence = Divergence::kForwardKl;
  }
  const cuda::Plan plan = cuda::plan(call, cuda::chip_of(call.queue.device));
  if (call.student.dtype != call.teacher.dtype || cuda::takes_any_types(plan.kernel)) {
    return cuda::kd_loss_of<cuda::AnyType>(call, rows, chosen, plan);
  }
  Outcome outcome;
  visit(call.student.dtype, [&](auto type) {
    outcome = cuda::kd_loss_of<typename decltype(type)::type>(call, rows, chosen, plan);
  });
  return outcome;
}

}  // namespace fastkd
