// SPDX-License-Identifier: Apache-2.0
#include "cpu/kd_loss.h"

namespace fastkd::cpu {

template Outcome kd_loss_of<TotalVariation>(const LogitArgs&, const RowOptions&,
                                            const KdLossOptions&);

}  // namespace fastkd::cpu
