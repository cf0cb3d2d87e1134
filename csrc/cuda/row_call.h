// SPDX-License-Identifier: Apache-2.0
// What the kernels of a softmax-type loss are given, by value, whatever the loss.
#pragma once

#include "core/math.h"
#include "core/row_weights.h"
#include "cuda/device.h"

namespace fastkd::cuda {

// What is known of a call once its targets and weights have been looked at, in device memory.
struct CallSummary {
  double inverse;     // 1 / denominator
  float grad_factor;  // row weight -> gradient scale: inverse, prescaled for float16
};

template <class Loss>
struct RowCall {
  LogitArgs args;
  typename Loss::Params params;
  RowWeights weights;
  const CallSummary* summary;  // nullptr: the host knew it all, grad_factor holds
  float grad_factor;
  float* row_loss;  // [rows], weighted, not yet divided
  bool aligned;     // every row of student, teacher and gradient starts at a multiple of 16 bytes

  __device__ __forceinline__ float factor() const {
    return summary == nullptr ? grad_factor : summary->grad_factor;
  }

  // A target outside the classes poisons its row: nothing may stop the device to report it.
  __device__ __forceinline__ float weight(int64_t row) const {
    const float weight = weights(row);
    if (args.target == nullptr) return weight;
    const int64_t y = args.target[row];
    const bool valid = (y >= 0 && y < args.student.classes) || y == weights.ignore_index;
    return valid ? weight : NAN;
  }

  // The target's class, or -1 where there is none to look at.
  __device__ __forceinline__ int64_t label(int64_t row, bool counts) const {
    if (!Loss::kHasLabel || !counts) return -1;
    const int64_t y = args.target[row];
    return y >= 0 && y < args.student.classes ? y : -1;
  }

  // Classes that take part in the soft term; the student may have more (common_vocab).
  __host__ __device__ __forceinline__ int64_t shared_classes() const {
    return args.student.classes < args.teacher.classes ? args.student.classes
                                                       : args.teacher.classes;
  }

  // At odd addresses a thread reads bytes of its neighbours, too, and drops them. In place they may
  // be storing there: no order of threads changes a value, but it is a race. A kernel that reads
  // row parts after it has stored others waits between reading and storing, and between storing and
  // reading.
  __device__ __forceinline__ bool reads_what_others_store() const {
    return !aligned && args.grad.data == args.student.data;
  }

  template <class T>
  __device__ __forceinline__ T* row_of(const LogitView& view, int64_t row) const {
    if (args.outer == 1) return view.template at<T>(0, row);
    const Quotient at = divide(row, args.inner, args.rows());
    return view.template at<T>(at.whole, at.rest);
  }
};

}  // namespace fastkd::cuda
