// SPDX-License-Identifier: Apache-2.0
#include "cuda/kd_loss.h"
#include "cuda/launch.h"
#include "cuda/sums.h"

namespace fastkd {

namespace cuda {
namespace {

template <class T>
Outcome kd_loss_of_type(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options,
                        const Plan& plan) {
  switch (options.divergence) {
    case Divergence::kForwardKl:
      return kd_loss_of<ForwardKl, T>(args, rows, options, plan);
    case Divergence::kReverseKl:
      return kd_loss_of<ReverseKl, T>(args, rows, options, plan);
    case Divergence::kJensenShannon:
    case Divergence::kTotalVariation:
      return kd_loss_of<AnyRefining, T>(args, rows, options, plan);
    case Divergence::kDecoupled:
      return kd_loss_of<Decoupled, T>(args, rows, options, plan);
  }
  return {};
}

}  // namespace
}  // namespace cuda

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
    return cuda::kd_loss_of_type<cuda::AnyType>(call, rows, chosen, plan);
  }
  Outcome outcome;
  visit(call.student.dtype, [&](auto type) {
    outcome = cuda::kd_loss_of_type<typename decltype(type)::type>(call, rows, chosen, plan);
  });
  return outcome;
}

}  // namespace fastkd
