// SPDX-License-Identifier: Apache-2.0
#include "losses/kd_loss.h"

#include "cpu/softmax_run.h"

namespace fastkd {

namespace {

template <bool kHard>
Outcome run_at_temperature(const LogitArgs& args, const RowOptions& rows,
                           const KdLossOptions& options) {
  const auto run = [&](auto loss) {
    using Loss = decltype(loss);
    return cpu::run_softmax<Loss>(args, rows, typename Loss::Params(options));
  };
  if (options.temperature == 1.0f) return run(KdLoss<1, kHard>{});
  if (options.temperature == 2.0f) return run(KdLoss<2, kHard>{});
  if (options.temperature == 4.0f) return run(KdLoss<4, kHard>{});
  return run(KdLoss<0, kHard>{});
}

}  // namespace

Outcome kd_loss(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options) {
  LogitArgs call = args;
  if (options.soft_weight == 0.0f)
    call.teacher = call.student;  // a teacher that weighs 0 is not read
  return args.target != nullptr && options.hard_weight != 0.0f
             ? run_at_temperature<true>(call, rows, options)
             : run_at_temperature<false>(call, rows, options);
}

}  // namespace fastkd
