// SPDX-License-Identifier: Apache-2.0
// Backward: the stored gradient times a number (or one number a row) that only the device knows.
#include "cuda/launch.h"
#include "cuda/vector_memory.h"
#include "kernels.h"

namespace fastkd {

namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 4;  // a thread and piece
constexpr int kBlocksPerMultiprocessor = 8;

enum class Factors {
  kOfRun,      // all elements of a run have one
  kOfRows,     // each `classes` elements of a run have one
  kOfElements  // each element has its own
};

// The gradient as runs of neighbouring elements.
struct Runs {
  const void* in;
  void* out;
  int64_t outer, inner;                              // a run for each pair of these
  int64_t in_outer, in_inner, out_outer, out_inner;  // strides
  int64_t length;
  Factors factors;
  const float* factor;
  int64_t factor_outer, factor_inner;  // strides; 0: all runs have the same
  int64_t classes;                     // of kOfRows
  const float* unscale;
};

// Factors of the elements [here, here + kPerVector) of a run.
template <Factors kFactors, int kPerVector>
__device__ __forceinline__ void load_factors(const float* factor, const Runs& runs, int64_t here,
                                             float (&factors)[kPerVector]) {
  Quotient row{0, here};
  if (kFactors == Factors::kOfRows) row = divide(here, runs.classes, runs.length);
#pragma unroll
  for (int i = 0; i < kPerVector; ++i) {
    if (kFactors == Factors::kOfRun || here + i >= runs.length) {
      factors[i] = factor[0];
    } else if (kFactors == Factors::kOfElements) {
      factors[i] = factor[here + i];
    } else {
      factors[i] = factor[row.whole];
      if (++row.rest == runs.classes) row = {row.whole + 1, 0};
    }
  }
}

// Block b of n takes the pieces b, b + n, ...: so few blocks are launched that it costs little if
// all return at once.
template <class T, Factors kFactors>
__global__ void __launch_bounds__(kThreads)
    scale_runs(const Runs runs, const int64_t segments, const bool aligned) {
  constexpr int kPerVector = kWidth<T>;
  constexpr int kPiece = kThreads * kVectors * kPerVector;
  const float unscale = runs.unscale == nullptr ? 1.0f : *runs.unscale;
  const bool in_place = runs.in == runs.out;
  if (kFactors == Factors::kOfRun && in_place && runs.factor_outer == 0 && runs.factor_inner == 0 &&
      *runs.factor * unscale == 1.0f) {
    return;  // everything stays as it is
  }
  const int64_t pieces = runs.outer * runs.inner * segments;
  const bool one_run = pieces == segments;
  for (int64_t piece = block_index(); piece < pieces; piece += grid_blocks()) {
    const Quotient at = one_run ? Quotient{0, piece} : divide(piece, segments, pieces);
    const Quotient run = one_run ? Quotient{0, 0} : divide(at.whole, runs.inner, pieces);
    const T* const in =
        static_cast<const T*>(runs.in) + run.whole * runs.in_outer + run.rest * runs.in_inner;
    T* const out =
        static_cast<T*>(runs.out) + run.whole * runs.out_outer + run.rest * runs.out_inner;
    const float* const factor =
        runs.factor + run.whole * runs.factor_outer + run.rest * runs.factor_inner;
    const int64_t begin = at.rest * kPiece, left = runs.length - begin;
    const int count = left < kPiece ? static_cast<int>(left) : kPiece;
    Words words[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = (v * kThreads + thread_index()) * kPerVector;
      words[v] = load_vector(in + begin, first, count, aligned);
    }
    // At odd addresses a thread reads bytes of its neighbours, too, and drops them. In place it
    // would read them while they are stored: no order of threads changes a value, but it is a race.
    if (in_place && !aligned) __syncthreads();
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = (v * kThreads + thread_index()) * kPerVector;
      float x[kPerVector], factors[kPerVector];
      unpack<T>(words[v], x);
      load_factors<kFactors>(factor, runs, begin + first, factors);
#pragma unroll
      for (int i = 0; i < kPerVector; ++i) x[i] *= factors[i] * unscale;
      store_vector(out + begin, first, count, aligned, pack<T>(x), lane_index(), kWarp);
    }
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
    runs.factors = args.per_row ? Factors::kOfRows : Factors::kOfRun;
    runs.classes = args.grad.classes;
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
    runs.factors = rows ? Factors::kOfRun : Factors::kOfElements;
    runs.factor_outer = args.inner;
    runs.factor_inner = rows ? 1 : 0;
  }
  return runs;
}

template <class T>
void launch_scale(Launcher& launch, const Runs& runs, const Chip& chip) {
  const int64_t size = sizeof(T);
  const int64_t per_block = kThreads * kVectors * kWidth<T>;
  const int64_t segments = (runs.length + per_block - 1) / per_block;
  const int64_t pieces = runs.outer * runs.inner * segments;
  const int64_t resident = int64_t{kBlocksPerMultiprocessor} * chip.multiprocessors;
  const auto multiple = [&](int64_t stride) { return stride * size % 16 == 0; };
  const bool aligned = reinterpret_cast<uintptr_t>(runs.in) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(runs.out) % 16 == 0 && multiple(runs.in_outer) &&
                       multiple(runs.in_inner) && multiple(runs.out_outer) &&
                       multiple(runs.out_inner);
  const auto kernel = runs.factors == Factors::kOfRun    ? scale_runs<T, Factors::kOfRun>
                      : runs.factors == Factors::kOfRows ? scale_runs<T, Factors::kOfRows>
                                                         : scale_runs<T, Factors::kOfElements>;
  launch("scale_gradient", kernel, {pieces < resident ? pieces : resident, kThreads, 1, 0}, runs,
         segments, aligned);
}

}  // namespace
}  // namespace cuda

Outcome scale_gradient(const ScaleArgs& args) {
  const cuda::Runs runs = cuda::runs_of(args);
  cuda::Launcher launch(args.queue);
  visit(args.grad.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    cuda::launch_scale<T>(launch, runs, cuda::chip_of(args.queue.device));
  });
  return launch.outcome();
}

}  // namespace fastkd
