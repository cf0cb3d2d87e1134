// SPDX-License-Identifier: Apache-2.0
// What a teacher tells of a few classes of each row, looked at before any logit is read.
#pragma once

#include "core/row_weights.h"
#include "kernels.h"

namespace fastkd::cpu {

// Whether an entry names a class: those of -inf only fill a row up.
inline bool names(float value) { return value != -INFINITY; }

// kNamedClasses with the first row that counts and names a class outside [0, classes) or a class
// twice, or has a value above `most`.
Outcome check_named(const LogitArgs& args, const NamedClasses& named, const RowWeights& weights,
                    float most);

}  // namespace fastkd::cpu
