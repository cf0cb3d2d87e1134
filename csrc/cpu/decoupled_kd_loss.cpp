// SPDX-License-Identifier: Apache-2.0
#include "losses/decoupled_kd_loss.h"

#include "cpu/kd_loss.h"

namespace fastkd::cpu {

Outcome decoupled_kd_loss(const LogitArgs& args, const RowOptions& rows,
                          const KdLossOptions& options) {
  return with_decoupled<Powers::kAsOne>(options, runner(args, rows, options));
}

}  // namespace fastkd::cpu
