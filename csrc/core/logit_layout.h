// SPDX-License-Identifier: Apache-2.0
// From tensors of any rank and strides to the [outer, classes, inner] views that the drivers read.
#pragma once

#include "core/logit_args.h"

namespace fastkd {

constexpr int kMaxRank = 8;

// A tensor as its owner describes it: address, type, sizes and strides in elements.
struct TensorRef {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int rank = 0;
  int64_t sizes[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};

  int64_t elements() const {
    int64_t count = 1;
    for (int i = 0; i < rank; ++i) count *= sizes[i];
    return count;
  }
};

// The dimensions around the class dimension of up to three tensors of one shape, merged as far as
// all strides allow.
class LogitLayout {
 public:
  // Lanes along fewer pixels than this waste more than a copy to contiguous rows costs.
  static constexpr int64_t kMinColumns = 8;
  // Column drivers compare targets as floats.
  static constexpr int64_t kMaxStridedClasses = int64_t{1} << 24;

  static constexpr int kMaxTensors = 3;

  LogitLayout(const TensorRef* const* tensors, int count, int dim) : count_(count) {
    for (int i = 0; i < tensors[0]->rank; ++i) {
      if (i != dim) append(tensors, i);
    }
    for (int k = 0; k < count; ++k) {
      class_stride_[k] = tensors[k]->sizes[dim] == 1 ? 1 : tensors[k]->strides[dim];
      classes_[k] = tensors[k]->sizes[dim];
    }
  }

  // What the drivers can read without a copy: contiguous classes, or contiguous rows (pixels).
  bool supported() const {
    if (groups_ > 2) return false;
    if (outer() * inner() == 0)
      return true;  // nothing is read; strides of empty tensors say nothing
    bool contiguous_classes = true, contiguous_rows = true;
    for (int k = 0; k < count_; ++k) {
      contiguous_classes &= class_stride_[k] == 1;
      contiguous_rows &= groups_ > 0 && stride_[groups_ - 1][k] == 1;
    }
    if (contiguous_classes) return true;
    return contiguous_rows && inner() >= kMinColumns && classes_[0] < kMaxStridedClasses;
  }

  int64_t outer() const { return groups_ == 2 ? size_[0] : 1; }
  int64_t inner() const { return groups_ == 0 ? 1 : size_[groups_ - 1]; }

  LogitView view(const TensorRef& tensor, int k) const {
    LogitView view;
    view.data = tensor.data;
    view.dtype = tensor.dtype;
    view.classes = classes_[k];
    view.stride_class = class_stride_[k];
    view.stride_outer = groups_ == 2 ? stride_[0][k] : 0;
    view.stride_inner = groups_ == 0 ? 0 : stride_[groups_ - 1][k];
    return view;
  }

 private:
  void append(const TensorRef* const* tensors, int i) {
    const int64_t size = tensors[0]->sizes[i];
    if (size == 1) return;
    bool merges = groups_ > 0;
    for (int k = 0; k < count_ && merges; ++k) {
      merges = stride_[groups_ - 1][k] == tensors[k]->strides[i] * size;
    }
    if (!merges) size_[groups_++] = 1;
    size_[groups_ - 1] *= size;
    for (int k = 0; k < count_; ++k) stride_[groups_ - 1][k] = tensors[k]->strides[i];
  }

  int count_;
  int groups_ = 0;
  int64_t size_[kMaxRank] = {};
  int64_t stride_[kMaxRank][kMaxTensors] = {};
  int64_t class_stride_[kMaxTensors] = {};
  int64_t classes_[kMaxTensors] = {};
};

}  // namespace fastkd
