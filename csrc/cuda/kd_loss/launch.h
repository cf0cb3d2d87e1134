// SPDX-License-Identifier: Apache-2.0
// What the files of this folder compile.
#pragma once

#include <type_traits>

#include "cuda/kd_loss.h"
#include "cuda/softmax_run.h"
#include "losses/decoupled_kd_loss.h"

namespace fastkd::cuda {

// Temperatures that have kernels of their own.
template <class D>
constexpr Powers kPowersOf = std::is_same_v<D, ForwardKl>   ? Powers::kEach
                             : std::is_same_v<D, ReverseKl> ? Powers::kOne
                                                            : Powers::kNone;

template <class D, class T>
Outcome kd_loss_of(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options,
                   const Plan& plan) {
  const auto launch = [&](auto loss) {
    using Loss = decltype(loss);
    return launch_softmax<Loss, T>(args, rows, typename Loss::Params(options), plan);
  };
  if constexpr (std::is_same_v<D, Decoupled>) {
    return with_decoupled<kPowersOf<D>>(options, launch);
  } else {
    return with_temperature<D, kPowersOf<D>>(options, args.target != nullptr, launch);
  }
}

}  // namespace fastkd::cuda
