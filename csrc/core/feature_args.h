// SPDX-License-Identifier: Apache-2.0
// What the kernels of attention transfer are given. Plain pointers and sizes; no ownership.
#pragma once

#include "core/logit_args.h"

namespace fastkd {

// Features are [samples, channels, positions] (a LogitView: outer, classes, inner) with any strides
// that core/logit_layout.h supports; student and teacher may differ in channels and type.
struct AttentionArgs {
  int64_t samples = 0;
  int64_t positions = 0;  // H * W
  LogitView student;
  LogitView teacher;
  double power = 2.0;         // p of |x|^p, > 0
  bool mean = true;           // over all samples and positions, else the sum
  bool with_grad = false;     // whether there is a gradient to write
  float* loss = nullptr;      // [1]
  float* map_grad = nullptr;  // [samples, positions]: dloss/d(mean over channels of |x|^p) of the
                              // student, where with_grad
  void* workspace = nullptr;  // attention_transfer_loss_workspace bytes, 64-byte aligned
  Queue queue;
};

// grad = map_grad * grad_loss * p * |x|^(p-1) * sign(x) / channels.
struct AttentionGradArgs {
  int64_t samples = 0;
  int64_t positions = 0;
  LogitView student;
  LogitView grad;  // the student's shape and type
  double power = 2.0;
  const float* map_grad = nullptr;   // [samples, positions]
  const float* grad_loss = nullptr;  // [1]
  Queue queue;
};

}  // namespace fastkd
