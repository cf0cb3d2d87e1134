// SPDX-License-Identifier: Apache-2.0
// kd_loss's kernels by divergence and type of logits. csrc/cuda/kd_loss has a source file for each:
// they compile side by side, and a GPU that compiles PTX at the first call compiles one of them.
#pragma once

#include "cuda/logit_reader.h"
#include "cuda/plan.h"
#include "kernels.h"
#include "losses/divergence.h"

namespace fastkd::cuda {

struct Decoupled {};

// D: ForwardKl, ReverseKl, AnyRefining or Decoupled. T: the type of student and teacher, or
// AnyType.
template <class D, class T>
Outcome kd_loss_of(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options,
                   const Plan& plan);

}  // namespace fastkd::cuda
