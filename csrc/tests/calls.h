// SPDX-License-Identifier: Apache-2.0
// The kernels as the checks call them: over the host's memory, wherever they run.
#pragma once

#include "kernels.h"

#if defined(FASTKD_ON_DEVICE)
#include "tests/device_calls.h"
#else
namespace fastkd::check::call {

using fastkd::attention_transfer_gradient;
using fastkd::attention_transfer_loss;
using fastkd::kd_loss;
using fastkd::rkd_loss;
using fastkd::scale_gradient;
using fastkd::similarity_loss;
using fastkd::topk_kd_loss;

}  // namespace fastkd::check::call
#endif
