// SPDX-License-Identifier: Apache-2.0
// Which way features are read in place.
#pragma once

#include "core/logit_args.h"

namespace fastkd {

// Whether neighbours in memory are positions (NCHW) or the channels of a position (channels_last).
inline bool runs_along_positions(const LogitView& view, int64_t positions) {
  if (positions > 1) return view.stride_inner == 1;
  return view.stride_class != 1 && view.classes > 1;
}

// Whether either has neighbours in memory.
inline bool has_runs(const LogitView& view, int64_t positions) {
  return runs_along_positions(view, positions) || view.stride_class == 1 || view.classes <= 1;
}

}  // namespace fastkd
