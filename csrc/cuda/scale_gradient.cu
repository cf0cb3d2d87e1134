// SPDX-License-Identifier: Apache-2.0
// Backward: the stored gradient times a number (or one number a row) that only the device knows.
#include "cuda/launch.h"
#include "cuda/vector_memory.h"
#include "kernels.h"

namespace fastkd {

namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 4;  // a thread

// The gradient as runs of neighbouring elements.
struct Runs {
  const void* in;
  void* out;
  int64_t outer, inner;                              // a run for each pair of these
  int64_t in_outer, in_inner, out_outer, out_inner;  // strides
  int64_t length;
  const float* factor;
  int64_t factor_outer, factor_inner, factor_step;  // 0: the same factor
  int64_t classes;                                  // > 0: a factor for each so many elements
  const float* unscale;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_runs(const Runs runs, const int64_t segments, const bool aligned) {
  constexpr int kPerVector = kWidth<T>;
  const float unscale = runs.unscale == nullptr ? 1.0f : *runs.unscale;
  const bool one_factor = runs.factor_outer == 0 && runs.factor_inner == 0 &&
                          runs.factor_step == 0 && runs.classes == 0;
  // In place a factor of 1 leaves everything as it is.
  const bool idle = one_factor && runs.in == runs.out && *runs.factor * unscale == 1.0f;
  const int64_t run = block_index() / segments, segment = block_index() % segments;
  const int64_t outer = run / runs.inner, inner = run % runs.inner;
  const T* const in =
      static_cast<const T*>(runs.in) + outer * runs.in_outer + inner * runs.in_inner;
  T* const out = static_cast<T*>(runs.out) + outer * runs.out_outer + inner * runs.out_inner;
  const float* const factor = runs.factor + outer * runs.factor_outer + inner * runs.factor_inner;
  const int64_t begin = segment * (kThreads * kVectors * kPerVector);
  const int64_t left = runs.length - begin;
  const int count = idle ? 0
                         : static_cast<int>(left < kThreads * kVectors * kPerVector
                                                ? left
                                                : kThreads * kVectors * kPerVector);
  Words words[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int first = (v * kThreads + thread_index()) * kPerVector;
    words[v] = load_vector(in + begin, first, count, aligned);
  }
  // At odd addresses a thread reads bytes of its neighbours, too, and drops them. In place it would
  // read them while they are stored: no order of threads changes a value, but it is a race.
  __syncthreads();
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int first = (v * kThreads + thread_index()) * kPerVector;
    float x[kPerVector];
    unpack<T>(words[v], x);
    const int64_t here = first < count ? begin + first : 0;
    if (runs.classes > 0) {  // the same for all threads
      int64_t row = here / runs.classes, left_in_row = (row + 1) * runs.classes - here;
#pragma unroll
      for (int i = 0; i < kPerVector; ++i) {
        if (first + i < count) x[i] *= factor[row] * unscale;
        if (--left_in_row == 0) {
          ++row;
          left_in_row = runs.classes;
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPerVector; ++i) {
        const int64_t at = first + i < count ? here + i : 0;
        x[i] *= factor[at * runs.factor_step] * unscale;
      }
    }
    store_vector(out + begin, first, count, aligned, pack<T>(x), lane_index(), kWarp);
  }
}

// Whether the elements have no gaps: such tensors are one run.
bool is_dense(const LogitView& view, int64_t outer, int64_t inner) {
  const bool rows = view.stride_class == 1;
  const int64_t inside = rows ? view.classes : inner;
  const int64_t step = rows ? view.stride_inner : view.stride_class;
  const int64_t count = rows ? inner : view.classes;
  return (count == 1 || step == inside) && (rows || inner == 1 || view.stride_inner == 1) &&
         (outer == 1 || view.stride_outer == inner * view.classes);
}

Runs runs_of(const ScaleArgs& args) {
  Runs runs{};
  runs.in = args.grad.data;
  runs.out = args.out.data;
  runs.factor = args.grad_loss;
  runs.unscale = args.unscale;
  const bool rows = args.grad.stride_class == 1 && args.out.stride_class == 1;
  const bool same_order = rows || (args.grad.stride_class != 1 && args.out.stride_class != 1);
  if (same_order && (rows || !args.per_row) && is_dense(args.grad, args.outer, args.inner) &&
      is_dense(args.out, args.outer, args.inner)) {
    runs.outer = runs.inner = 1;
    runs.length = args.outer * args.inner * args.grad.classes;
    runs.classes = args.per_row ? args.grad.classes : 0;
    return runs;
  }
  runs.outer = args.outer;
  runs.inner = rows ? args.inner : args.grad.classes;
  runs.length = rows ? args.grad.classes : args.inner;
  runs.in_outer = args.grad.stride_outer;
  runs.out_outer = args.out.stride_outer;
  runs.in_inner = rows ? args.grad.stride_inner : args.grad.stride_class;
  runs.out_inner = rows ? args.out.stride_inner : args.out.stride_class;
  if (args.per_row) {
    runs.factor_outer = args.inner;
    runs.factor_inner = rows ? 1 : 0;
    runs.factor_step = rows ? 0 : 1;
  }
  return runs;
}

}  // namespace
}  // namespace cuda

Outcome scale_gradient(const ScaleArgs& args) {
  const cuda::Runs runs = cuda::runs_of(args);
  cuda::Launcher launch(args.queue);
  visit(args.grad.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t size = sizeof(T);
    const int64_t per_block = cuda::kThreads * cuda::kVectors * cuda::kWidth<T>;
    const int64_t segments = (runs.length + per_block - 1) / per_block;
    const auto multiple = [&](int64_t stride) { return stride * size % 16 == 0; };
    const bool aligned = reinterpret_cast<uintptr_t>(runs.in) % 16 == 0 &&
                         reinterpret_cast<uintptr_t>(runs.out) % 16 == 0 &&
                         multiple(runs.in_outer) && multiple(runs.in_inner) &&
                         multiple(runs.out_outer) && multiple(runs.out_inner);
    launch("scale_gradient", cuda::scale_runs<T>,
           {runs.outer * runs.inner * segments, cuda::kThreads, 1, 0}, runs, segments, aligned);
  });
  return launch.outcome();
}

}  // namespace fastkd
