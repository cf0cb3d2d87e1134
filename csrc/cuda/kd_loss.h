// SPDX-License-Identifier: Apache-2.0
// kd_loss's kernels, one source file for each type of logits so that they compile side by side.
#pragma once

#include "cuda/softmax_run.h"
#include "kernels.h"
#include "losses/decoupled_kd_loss.h"

namespace fastkd::cuda {

// T: the type of student and teacher, or AnyType.
template <class T>
Outcome kd_loss_of(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options,
                   const Plan& plan) {
  const auto launch = [&](auto loss) {
    using Loss = decltype(loss);
    return launch_softmax<Loss, T>(args, rows, typename Loss::Params(options), plan);
  };
  const bool has_target = args.target != nullptr;
  switch (options.divergence) {
    case Divergence::kForwardKl:
      return with_temperature<ForwardKl, Powers::kEach>(options, has_target, launch);
    case Divergence::kReverseKl:
      return with_temperature<ReverseKl, Powers::kOne>(options, has_target, launch);
    case Divergence::kJensenShannon:
    case Divergence::kTotalVariation:
      return with_temperature<AnyRefining, Powers::kNone>(options, has_target, launch);
    case Divergence::kDecoupled:
      return with_decoupled<Powers::kNone>(options, launch);
  }
  return {};
}

extern template Outcome kd_loss_of<float>(const LogitArgs&, const RowOptions&, const KdLossOptions&,
                                          const Plan&);
extern template Outcome kd_loss_of<BFloat16>(const LogitArgs&, const RowOptions&,
                                             const KdLossOptions&, const Plan&);
extern template Outcome kd_loss_of<Float16>(const LogitArgs&, const RowOptions&,
                                            const KdLossOptions&, const Plan&);
extern template Outcome kd_loss_of<AnyType>(const LogitArgs&, const RowOptions&,
                                            const KdLossOptions&, const Plan&);

}  // namespace fastkd::cuda
