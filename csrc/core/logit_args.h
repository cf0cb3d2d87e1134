// SPDX-License-Identifier: Apache-2.0
// What a kernel of a logit-level loss is given. Plain pointers and sizes; no ownership.
#pragma once

#include "core/dtype.h"

namespace fastkd {

// Logits of any rank, seen as [outer, classes, inner] around the class dimension. Strides count
// elements and may be anything the drivers accept (see logit_layout.h).
struct LogitView {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t classes = 0;
  int64_t stride_outer = 0;
  int64_t stride_class = 1;
  int64_t stride_inner = 0;

  template <class T>
  FASTKD_HOST_DEVICE T* at(int64_t outer, int64_t inner) const {
    return static_cast<T*>(data) + outer * stride_outer + inner * stride_inner;
  }
};

// A row's logits at its target.
template <class V>
struct Labels {
  V student;
  V teacher;  // read where the loss hides the label's class
};

// A teacher by `count` entries a row: log-probabilities or logits, and of which classes. An entry
// of -inf names no class.
struct NamedClasses {
  const float* values = nullptr;     // [rows, count]
  const int64_t* indices = nullptr;  // [rows, count]
  int64_t count = 0;
};

enum class Reduction : int32_t { kNone = 0, kSum = 1, kMean = 2, kBatchMean = 3 };

// Which rows count and how their losses become one number; the same for every logit loss.
struct RowOptions {
  Reduction reduction = Reduction::kMean;
  int64_t ignore_index = -100;
  int64_t batch_size = 1;   // denominator of kBatchMean
  double num_items = -1.0;  // >= 0 replaces the denominator of kMean and kBatchMean
  const double* num_items_on_device = nullptr;  // [1], read by the kernels in place of num_items
};

// Where a CUDA backend launches; the CPU backends run on the caller's thread and torch's pool.
struct Queue {
  int device = 0;
  void* stream = nullptr;
};

// rows = outer * inner, row = outer_index * inner + inner_index.
struct LogitArgs {
  int64_t outer = 0;
  int64_t inner = 0;
  LogitView student;
  LogitView teacher;
  LogitView grad;                        // the student's shape; data == nullptr: no gradient wanted
  const int64_t* target = nullptr;       // [rows], or nullptr: no hard term
  const float* sample_weight = nullptr;  // [rows], or nullptr: every row weighs 1
  float* loss = nullptr;                 // [rows] for kNone, else [1]
  float* unscale = nullptr;              // [1]: stored gradient * unscale = gradient of the loss
  void* workspace = nullptr;             // workspace_bytes(rows) bytes, 16-byte aligned
  Queue queue;

  FASTKD_HOST_DEVICE int64_t rows() const { return outer * inner; }
};

}  // namespace fastkd
