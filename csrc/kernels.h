// SPDX-License-Identifier: Apache-2.0
// Every kernel of a backend, declared once. A backend is a build of these functions: csrc/cpu is
// compiled for three instruction sets; Python picks the module (fastkd/_native.py).
//
// A kernel checks what it must read to know (target), writes its outputs, and reports; it never
// throws and never touches Python.
#pragma once

#include "core/logit_args.h"
#include "losses/kd_loss.h"

namespace fastkd {

enum class Status { kOk, kTargetOutOfRange, kOutOfMemory, kThreadPoolFailed };

struct Outcome {
  Status status = Status::kOk;
  int64_t row = -1;  // of kTargetOutOfRange
};

// KL divergence at a temperature, cross-entropy, and the gradient, in one pass over the logits.
Outcome kd_loss(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options);

// out = grad * grad_loss * unscale, where grad_loss is one number or one per row. In place
// (out == grad) a factor of exactly 1 costs nothing.
struct ScaleArgs {
  int64_t outer = 0;
  int64_t inner = 0;
  LogitView grad;
  LogitView out;
  const float* grad_loss = nullptr;  // [1] or [rows]
  bool per_row = false;
  const float* unscale = nullptr;  // [1], or nullptr: 1
};
Outcome scale_gradient(const ScaleArgs& args);

}  // namespace fastkd
