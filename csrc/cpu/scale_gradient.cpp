// SPDX-License-Identifier: Apache-2.0
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/vec_memory.h"
#include "kernels.h"

namespace fastkd {

namespace cpu {
namespace {

constexpr int64_t kElementsPerTask = 131072;

template <class T>
void scale_run(const T* in, T* out, int64_t count, Vec factor) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(in + i) * factor);
  if (i < count) {
    const int left = static_cast<int>(count - i);
    store_first(out + i, load_first(in + i, left, 0.0f) * factor, left);
  }
}

template <class T>
void scale_run_by(const T* in, T* out, int64_t count, const float* factors, Vec unscale) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(out + i, load(in + i) * (load(factors + i) * unscale));
  }
  if (i < count) {
    const int left = static_cast<int>(count - i);
    const Vec factor = load_first(factors + i, left, 0.0f) * unscale;
    store_first(out + i, load_first(in + i, left, 0.0f) * factor, left);
  }
}

// Classes contiguous: a row has one factor.
template <class T>
bool scale_rows(const ScaleArgs& args, float unscale) {
  const int64_t classes = args.grad.classes;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float factor = (args.per_row ? args.grad_loss[row] : *args.grad_loss) * unscale;
      scale_run(args.grad.at<const T>(row / args.inner, row % args.inner),
                args.out.at<T>(row / args.inner, row % args.inner), classes, Vec(factor));
    }
  };
  return parallel_for(args.outer * args.inner, kElementsPerTask / (classes + 16) + 1, body);
}

// Classes strided: runs of neighbouring rows, each with its factor.
template <class T>
bool scale_columns(const ScaleArgs& args, float unscale) {
  const int64_t classes = args.grad.classes;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t outer = run / classes, c = run % classes;
      const T* in = args.grad.at<const T>(outer, 0) + c * args.grad.stride_class;
      T* out = args.out.at<T>(outer, 0) + c * args.out.stride_class;
      if (args.per_row) {
        scale_run_by(in, out, args.inner, args.grad_loss + outer * args.inner, Vec(unscale));
      } else {
        scale_run(in, out, args.inner, Vec(*args.grad_loss * unscale));
      }
    }
  };
  return parallel_for(args.outer * classes, kElementsPerTask / (args.inner + 16) + 1, body);
}

}  // namespace
}  // namespace cpu

Outcome scale_gradient(const ScaleArgs& args) {
  const float unscale = args.unscale == nullptr ? 1.0f : *args.unscale;
  const bool in_place = args.grad.data == args.out.data;
  if (in_place && !args.per_row && *args.grad_loss * unscale == 1.0f) return {};
  const bool contiguous_classes = args.grad.stride_class == 1 && args.out.stride_class == 1;
  bool ok = false;
  visit(args.grad.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    ok = contiguous_classes ? cpu::scale_rows<T>(args, unscale)
                            : cpu::scale_columns<T>(args, unscale);
  });
  if (!ok) return {Status::kThreadPoolFailed, -1};
  return {};
}

}  // namespace fastkd
