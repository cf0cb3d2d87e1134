// SPDX-License-Identifier: Apache-2.0
// Every kernel of a backend, declared once. A backend is a build of these functions: csrc/cpu is
// compiled for three instruction sets, csrc/cuda by nvcc for GPUs and by g++ for the emulator;
// Python picks the module (fastkd/_backends.py).
//
// A kernel checks what it must read to know (on the CPU: the target), writes its outputs, and
// reports; it never throws and never touches Python. On a GPU it has only been launched when the
// function returns.
#pragma once

#include "core/feature_args.h"
#include "core/logit_args.h"
#include "core/pair_args.h"
#include "losses/kd_loss.h"
#include "losses/topk_kd_loss.h"

namespace fastkd {

enum class Status {
  kOk,
  kUnsupportedLayout,  // copy the logits to contiguous rows and call again
  kTargetOutOfRange,
  kNamedClasses,  // what a teacher tells of a row is no set of classes, or no log-probabilities
  kOutOfMemory,
  kThreadPoolFailed,
  kNoRoomForClusters,  // of a kernel on this chip; another one can do without
  kLaunchFailed,
  kTooLarge,  // for the device's memory on the chip
};

struct Outcome {
  Status status = Status::kOk;
  int64_t row = -1;              // of kTargetOutOfRange and kNamedClasses
  const char* kernel = nullptr;  // of those that follow kThreadPoolFailed, and why
  const char* reason = nullptr;
};

// Scratch that the caller brings for a call over this many rows; 0 where none is needed.
int64_t workspace_bytes(int64_t rows);

// KL divergence at a temperature, cross-entropy, and the gradient, in one pass over the logits.
Outcome kd_loss(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& options);

// The same from a teacher that tells K classes of a row.
Outcome topk_kd_loss(const LogitArgs& args, const NamedClasses& named, const RowOptions& rows,
                     const TopKKdLossOptions& options);

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
  Queue queue;
};
Outcome scale_gradient(const ScaleArgs& args);

// Relations between the examples of a batch, with the gradient, in O(N^2) memory: distances of
// pairs and angles of triplets, or tables of similarities.
int64_t rkd_loss_workspace(const PairArgs& args, const RkdOptions& options);
Outcome rkd_loss(const PairArgs& args, const RkdOptions& options);

int64_t similarity_loss_workspace(const PairArgs& args, const SimilarityOptions& options);
Outcome similarity_loss(const PairArgs& args, const SimilarityOptions& options);

// Attention maps of student and teacher features, their loss, and what backward needs: dloss/dmap
// of the student. Backward then turns it into the gradient of the features.
int64_t attention_transfer_loss_workspace(const AttentionArgs& args);
Outcome attention_transfer_loss(const AttentionArgs& args);
Outcome attention_transfer_gradient(const AttentionGradArgs& args);

}  // namespace fastkd
