// SPDX-License-Identifier: Apache-2.0
#include "cuda/kd_loss/launch.h"

namespace fastkd::cuda {

template Outcome kd_loss_of<AnyRefining, BFloat16>(const LogitArgs&, const RowOptions&,
                                                   const KdLossOptions&, const Plan&);

}  // namespace fastkd::cuda
