// SPDX-License-Identifier: Apache-2.0
// How attention_transfer_loss lays out its workspace, on every device.
#pragma once

#include "core/feature_args.h"

namespace fastkd {

// The map of the student lies where its gradient will.
struct AttentionMaps {
  double* losses;  // [samples]
  float* teacher;  // [samples, positions]
  float* student;  // [samples, positions]

  explicit AttentionMaps(const AttentionArgs& args)
      : losses(static_cast<double*>(args.workspace)),
        teacher(reinterpret_cast<float*>(losses + args.samples)),
        student(args.with_grad ? args.map_grad : teacher + args.samples * args.positions) {}

  static int64_t bytes(const AttentionArgs& args) {
    const int64_t maps = args.with_grad ? 1 : 2;
    return args.samples * static_cast<int64_t>(sizeof(double)) +
           maps * args.samples * args.positions * static_cast<int64_t>(sizeof(float));
  }
};

}  // namespace fastkd
