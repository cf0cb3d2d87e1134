// SPDX-License-Identifier: Apache-2.0
#include "losses/kd_loss.h"

#include "cpu/softmax_run.h"
#include "losses/decoupled_kd_loss.h"

namespace fastkd {
namespace {

// run(functor) makes the call.
auto runner(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options) {
  return [&](auto loss) {
    using Loss = decltype(loss);
    return cpu::run_softmax<Loss>(args, rows, typename Loss::Params(options));
  };
}

template <class D>
Outcome kd_loss_of(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options) {
  return with_temperature<D, Powers::kAsOne>(options, args.target != nullptr,
                                             runner(args, rows, options));
}

}  // namespace

int64_t workspace_bytes(int64_t) { return 0; }

Outcome kd_loss(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options) {
  const bool decoupled = options.divergence == Divergence::kDecoupled;
  LogitArgs call = args;
  if (options.soft_weight == 0.0f && !decoupled) {  // a teacher that weighs 0 is not read
    call.teacher = call.student;
    return kd_loss_of<ForwardKl>(call, rows, options);
  }
  switch (options.divergence) {
    case Divergence::kForwardKl:
      return kd_loss_of<ForwardKl>(call, rows, options);
    case Divergence::kReverseKl:
      return kd_loss_of<ReverseKl>(call, rows, options);
    case Divergence::kJensenShannon:
      return kd_loss_of<JensenShannon>(call, rows, options);
    case Divergence::kTotalVariation:
      return kd_loss_of<TotalVariation>(call, rows, options);
    case Divergence::kDecoupled:
      return with_decoupled<Powers::kAsOne>(options, runner(call, rows, options));
  }
  return {};
}

}  // namespace fastkd
