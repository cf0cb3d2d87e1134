// SPDX-License-Identifier: Apache-2.0
#include "losses/topk_kd_loss.h"

#include "cpu/softmax_run.h"
#include "cpu/topk_driver.h"

namespace fastkd {

Outcome topk_kd_loss(const LogitArgs& args, const NamedClasses& named, const RowOptions& rows,
                     const TopKKdLossOptions& options) {
  if (args.student.stride_class != 1 || args.grad.stride_class != 1) {
    return {Status::kUnsupportedLayout, -1};
  }
  const float most = options.logits ? INFINITY : kMostLogProbability;
  return with_topk(options, args.target != nullptr, [&](auto loss) {
    using Loss = decltype(loss);
    const typename Loss::Params params(options);
    return cpu::run_rows<Loss>(args, rows, params, [&](const cpu::SoftmaxCall<Loss>& call) {
      const Outcome outcome = cpu::check_named(args, named, call.weights, most);
      return outcome.status == Status::kOk ? cpu::TopKDriver<Loss>(call, named).run() : outcome;
    });
  });
}

}  // namespace fastkd
