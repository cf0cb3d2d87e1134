// SPDX-License-Identifier: Apache-2.0
// Dense maps, (N, C, H, W) with the classes strided and the pixels contiguous: a thread takes two
// neighbouring pixels and one of the slices of the classes; the threads of all slices of a pixel
// share it.
//
// Up to kSliceClasses classes a slice stay in registers between sums and gradient; more are read
// twice.
#pragma once

#include "cuda/group.h"
#include "cuda/pixel_pair.h"
#include "cuda/plan.h"
#include "cuda/row_call.h"

namespace fastkd::cuda {

// What one thread knows of its two pixels before it reads logits. `Index` counts classes.
template <class Loss, class Index>
struct ColumnPixels {
  bool exists, both;
  int64_t outer, inner, row;  // of the first pixel
  float weight[kPixels];
  Index label[kPixels];
  Labels<float> labels[kPixels];

  template <class T>
  static __device__ __forceinline__ ColumnPixels find(const RowCall<Loss>& call, int64_t pair,
                                                      const T*) {
    ColumnPixels p;
    const int64_t pairs_per_outer = (call.args.inner + 1) / kPixels;
    p.exists = pair < call.args.outer * pairs_per_outer;
    const Quotient at =
        divide(p.exists ? pair : 0, pairs_per_outer, call.args.outer * pairs_per_outer);
    p.outer = at.whole;
    p.inner = at.rest * kPixels;
    p.both = p.exists && p.inner + 1 < call.args.inner;
    p.row = p.outer * call.args.inner + p.inner;
    const PixelPair<T> student(call.args.student, p.outer, p.inner, p.both, false);
    const PixelPair<T> teacher(call.args.teacher, p.outer, p.inner, p.both, false);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const bool here = i == 0 ? p.exists : p.both;
      p.weight[i] = here ? call.weight(p.row + i) : 0.0f;
      p.label[i] = static_cast<Index>(call.label(p.row + i, p.weight[i] != 0.0f));
      p.labels[i] = {NAN, NAN};
      if (p.label[i] >= 0) {
        p.labels[i].student = pixel(student.read(p.label[i]), i);
        if (Loss::kHidesLabel) p.labels[i].teacher = pixel(teacher.read(p.label[i]), i);
      }
    }
    return p;
  }

  __device__ __forceinline__ bool any_counts() const {
    return weight[0] != 0.0f || weight[1] != 0.0f;
  }
};

// A block is `pairs` pixel pairs by `slices` slices of `slice` classes; thread = slice * pairs +
// pair.
template <class Loss, class T, bool kInRegisters>
__global__ void __launch_bounds__(kMemoryThreads, 1)
    columns(const __grid_constant__ RowCall<Loss> call, const int pairs, const int slices,
            const int slice) {
  using Params = typename Loss::Params;
  using State = typename Loss::template State<float>;
  using Exps = typename Loss::template Exps<float>;
  using GradScale = typename Loss::template GradScale<float>;
  constexpr bool kKeepExps = Loss::kExps == 2;
  static_assert(!(kKeepExps && Loss::kRefines));

  Arena arena(shared_memory());
  Part<Loss>* const parts = arena.template take<Part<Loss>>(
      slices > 1 ? static_cast<int64_t>(slices) * pairs * kPixels : 0);

  const int my_pair = thread_index() % pairs;
  const int my_slice = thread_index() / pairs;
  using Index = std::conditional_t<kInRegisters, int, int64_t>;  // of classes
  using Pixels = ColumnPixels<Loss, Index>;
  const Pixels pixels =
      Pixels::find(call, block_index() * pairs + my_pair, static_cast<const T*>(nullptr));
  const Index classes = static_cast<Index>(call.args.student.classes);
  const Index begin = static_cast<Index>(my_slice) * slice;
  const Index stored_end = begin + slice < classes ? begin + slice : classes;
  const Index end = pixels.any_counts() ? stored_end : begin;
  const PixelPair<T> student(call.args.student, pixels.outer, pixels.inner, pixels.both,
                             call.aligned);
  const PixelPair<T> teacher(call.args.teacher, pixels.outer, pixels.inner, pixels.both,
                             call.aligned);
  const Params& params = call.params;
  const auto read = [&](const PixelPair<T>& logits, Index c) {
    float2 x = logits.read(c);
    if constexpr (Loss::kHidesLabel) {
      if (c == pixels.label[0]) x.x = -INFINITY;
      if (c == pixels.label[1]) x.y = -INFINITY;
    }
    return x;
  };

  // ---- sums of this slice ----
  const bool logits = Loss::wants_logits(params);
  State state[kPixels];
  float2 raw_student[kInRegisters ? kSliceClasses : 1],
      raw_teacher[kInRegisters ? kSliceClasses : 1];
  Exps kept[kInRegisters && kKeepExps ? kSliceClasses : 1][kPixels];
  if constexpr (kInRegisters) {
#pragma unroll
    for (int k = 0; k < kSliceClasses; ++k) {
      raw_student[k] = raw_teacher[k] = {-INFINITY, -INFINITY};
      if (begin + k < end) {
        raw_student[k] = read(student, begin + k);
        raw_teacher[k] = read(teacher, begin + k);
      }
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      float max_student = kLowest, max_teacher = kLowest;
#pragma unroll
      for (int k = 0; k < kSliceClasses; ++k) {
        max_student = max(pixel(raw_student[k], i), max_student);
        max_teacher = max(pixel(raw_teacher[k], i), max_teacher);
      }
      state[i] = Loss::start(max_student, max_teacher);
#pragma unroll
      for (int k = 0; k < kSliceClasses; ++k) {
        kept[kKeepExps ? k : 0][i] =
            Loss::update(params, state[i], pixel(raw_student[k], i), pixel(raw_teacher[k], i));
        if (logits) Loss::add_logit(state[i], pixel(raw_student[k], i), ThisLane{begin + k < end});
      }
    }
  } else {
    state[0] = state[1] = Loss::start(kLowest, kLowest);
    float seen = 0.0f;
    for (Index c = begin; c < end; ++c) {
      const float2 s = read(student, c), t = read(teacher, c);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        if (pixel(s, i) > state[i].max_student || pixel(t, i) > state[i].max_teacher) {
          state[i] = Loss::rebase(params, state[i], max(pixel(s, i), state[i].max_student),
                                  max(pixel(t, i), state[i].max_teacher), seen);
        }
        Loss::update(params, state[i], pixel(s, i), pixel(t, i));
        if (logits) Loss::add_logit(state[i], pixel(s, i), AllLanes{});
      }
      seen += 1.0f;
    }
  }

  // ---- sums of all slices ----
  const auto join = [&](const State(&state)[kPixels], State(&whole)[kPixels]) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) whole[i] = state[i];
    if (slices <= 1) return;  // the same for all threads
    const auto place = [&](int s, int i) { return (s * kPixels + i) * pairs + my_pair; };
    const Index mine = end - begin;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      parts[place(my_slice, i)] = {state[i], static_cast<float>(mine < 0 ? 0 : mine)};
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      float max_student = kLowest, max_teacher = kLowest;
      for (int s = 0; s < slices; ++s) {
        max_student = max(parts[place(s, i)].state.max_student, max_student);
        max_teacher = max(parts[place(s, i)].state.max_teacher, max_teacher);
      }
      whole[i] = Loss::start(max_student, max_teacher);
      for (int s = 0; s < slices; ++s) {
        const Part<Loss> part = parts[place(s, i)];
        Loss::add(whole[i],
                  Loss::rebase(params, part.state, max_student, max_teacher, part.classes));
      }
    }
  };
  State whole[kPixels];
  join(state, whole);

  // Exponentials relative to the maxima of all slices.
  typename Loss::template Normalizer<float> normalizer[kPixels] =
      {};  // all 0 for a pixel that does not count
  const auto again = [&](float2 s, float2 t, Exps(&exps)[kPixels], State(&refined)[kPixels]) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      State unused = Loss::start(whole[i].max_student, whole[i].max_teacher);
      exps[i] = Loss::update(params, unused, pixel(s, i), pixel(t, i));
      if constexpr (Loss::kRefines) Loss::refine(params, refined[i], normalizer[i], exps[i]);
    }
  };
  if constexpr (Loss::kRefines) {
    State refined[kPixels], joined[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      if (pixels.weight[i] != 0.0f) normalizer[i] = Loss::normalizer(whole[i]);
      refined[i] = Loss::start(whole[i].max_student, whole[i].max_teacher);
    }
    Exps exps[kPixels];
    if constexpr (kInRegisters) {
#pragma unroll
      for (int k = 0; k < kSliceClasses; ++k) {
        make_new(raw_student[k]);
        make_new(raw_teacher[k]);
        again(raw_student[k], raw_teacher[k], exps, refined);
      }
    } else {
      for (Index c = begin; c < end; ++c) again(read(student, c), read(teacher, c), exps, refined);
    }
    __syncthreads();  // the sums that stood in `parts` have been read
    join(refined, joined);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) whole[i] = Loss::with_refined(whole[i], joined[i]);
  }

  // ---- loss and gradient ----
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const bool here = i == 0 ? pixels.exists : pixels.both;
    if (my_slice == 0 && here) {
      const float loss = Loss::finish(params, whole[i], Loss::hard_state(whole[i]),
                                      pixels.labels[i], static_cast<float>(classes));
      call.row_loss[pixels.row + i] = pixels.weight[i] != 0.0f ? pixels.weight[i] * loss : 0.0f;
    }
  }
  if (call.args.grad.data != nullptr) {
    GradScale scale[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      scale[i] = {};  // all 0 for a pixel that does not count
      if (pixels.weight[i] != 0.0f) {
        scale[i] = Loss::grad_scale(params, whole[i], Loss::hard_state(whole[i]), pixels.labels[i],
                                    pixels.weight[i] * call.factor(), static_cast<float>(classes));
        if (kInRegisters && kKeepExps) {
          scale[i] = Loss::for_part(params, scale[i], state[i].max_student - whole[i].max_student,
                                    state[i].max_teacher - whole[i].max_teacher);
        }
      }
    }
    const PixelPair<T> grad(call.args.grad, pixels.outer, pixels.inner, pixels.both, call.aligned);
    const auto finish = [&](Index c, const Exps(&exps)[kPixels]) {
      float g[kPixels];
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        // What a pixel that does not count holds may be NaN.
        g[i] = pixels.weight[i] != 0.0f ? Loss::grad(scale[i], exps[i]) : 0.0f;
        if (Loss::kHasLabel && c == pixels.label[i]) g[i] -= scale[i].label;
      }
      grad.write(c, {g[0], g[1]});
    };
    State unused[kPixels] = {};
    if constexpr (kInRegisters) {
#pragma unroll
      for (int k = 0; k < kSliceClasses; ++k) {
        if (pixels.exists && begin + k < stored_end) {
          if constexpr (!kKeepExps) {
            make_new(raw_student[k]);
            make_new(raw_teacher[k]);
            again(raw_student[k], raw_teacher[k], kept[0], unused);
          }
          finish(begin + k, kept[kKeepExps ? k : 0]);
        }
      }
    } else {
      for (Index c = begin; pixels.exists && c < stored_end; ++c) {
        Exps exps[kPixels] = {};
        if (c < end) again(read(student, c), read(teacher, c), exps, unused);
        finish(c, exps);
      }
    }
  }
}

}  // namespace fastkd::cuda
