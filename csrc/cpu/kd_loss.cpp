// SPDX-License-Identifier: Apache-2.0
#include "losses/kd_loss.h"

#include "cpu/softmax_run.h"

namespace fastkd {

int64_t workspace_bytes(int64_t) { return 0; }

Outcome kd_loss(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options) {
  LogitArgs call = args;
  if (options.soft_weight == 0.0f)
    call.teacher = call.student;  // a teacher that weighs 0 is not read
  return with_kd_loss(options, args.target != nullptr, [&](auto loss) {
    using Loss = decltype(loss);
    return cpu::run_softmax<Loss>(call, rows, typename Loss::Params(options));
  });
}

}  // namespace fastkd
