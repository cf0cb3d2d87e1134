// SPDX-License-Identifier: Apache-2.0
// kd_loss's kernels, one source file for each divergence so that they compile side by side.
#pragma once

#include "cpu/softmax_run.h"
#include "kernels.h"
#include "losses/kd_loss.h"

namespace fastkd::cpu {

// A function that makes the call with the functor it is given.
inline auto runner(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options) {
  return [&](auto loss) {
    using Loss = decltype(loss);
    return run_softmax<Loss>(args, rows, typename Loss::Params(options));
  };
}

// D: the divergence, of losses/divergence.h.
template <class D>
Outcome kd_loss_of(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options) {
  return with_temperature<D, Powers::kAsOne>(options, args.target != nullptr,
                                             runner(args, rows, options));
}

extern template Outcome kd_loss_of<ForwardKl>(const LogitArgs&, const RowOptions&,
                                              const KdLossOptions&);
extern template Outcome kd_loss_of<ReverseKl>(const LogitArgs&, const RowOptions&,
                                              const KdLossOptions&);
extern template Outcome kd_loss_of<JensenShannon>(const LogitArgs&, const RowOptions&,
                                                  const KdLossOptions&);
extern template Outcome kd_loss_of<TotalVariation>(const LogitArgs&, const RowOptions&,
                                                   const KdLossOptions&);

Outcome decoupled_kd_loss(const LogitArgs& args, const RowOptions& rows,
                          const KdLossOptions& options);

}  // namespace fastkd::cpu
