// SPDX-License-Identifier: Apache-2.0
// kd_loss's kernels, one source file for each type of logits so that they compile side by side.
#pragma once

#include <type_traits>

#include "cuda/softmax_run.h"
#include "kernels.h"

namespace fastkd::cuda {

// T: the type of student and teacher, or AnyType.
template <class T>
Outcome kd_loss_of(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options) {
  return with_kd_loss(options, args.target != nullptr, [&](auto loss) {
    using Loss = decltype(loss);
    const typename Loss::Params params(options);
    return launch_softmax<Loss>(args, rows, params,
                                [](Launcher& launch, const RowCall<Loss>& call, const Plan& plan) {
                                  if constexpr (std::is_same_v<T, AnyType>) {
                                    launch_any_types(launch, call, plan);
                                  } else {
                                    launch_one_type<Loss, T>(launch, call, plan);
                                  }
                                });
  });
}

extern template Outcome kd_loss_of<float>(const LogitArgs&, const RowOptions&,
                                          const KdLossOptions&);
extern template Outcome kd_loss_of<BFloat16>(const LogitArgs&, const RowOptions&,
                                             const KdLossOptions&);
extern template Outcome kd_loss_of<Float16>(const LogitArgs&, const RowOptions&,
                                            const KdLossOptions&);
extern template Outcome kd_loss_of<AnyType>(const LogitArgs&, const RowOptions&,
                                            const KdLossOptions&);

}  // namespace fastkd::cuda
