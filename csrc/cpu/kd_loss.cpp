// SPDX-License-Identifier: Apache-2.0
#include "cpu/kd_loss.h"

namespace fastkd {

int64_t workspace_bytes(int64_t) { return 0; }

Outcome kd_loss(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options) {
  const bool decoupled = options.divergence == Divergence::kDecoupled;
  LogitArgs call = args;
  if (options.soft_weight == 0.0f && !decoupled) {  // a teacher that weighs 0 is not read
    call.teacher = call.student;
    return cpu::kd_loss_of<ForwardKl>(call, rows, options);
  }
  switch (options.divergence) {
    case Divergence::kForwardKl:
      return cpu::kd_loss_of<ForwardKl>(call, rows, options);
    case Divergence::kReverseKl:
      return cpu::kd_loss_of<ReverseKl>(call, rows, options);
    case Divergence::kJensenShannon:
      return cpu::kd_loss_of<JensenShannon>(call, rows, options);
    case Divergence::kTotalVariation:
      return cpu::kd_loss_of<TotalVariation>(call, rows, options);
    case Divergence::kDecoupled:
      return cpu::decoupled_kd_loss(call, rows, options);
  }
  return {};
}

}  // namespace fastkd
