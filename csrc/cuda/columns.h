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

// What one thread knows of its two pixels before it reads logits.
template <class Loss>
struct ColumnPixels {
  bool exists, both;
  int64_t outer, inner, row;  // of the first pixel
  float weight[kPixels];
  int64_t label[kPixels];
  float label_logit[kPixels];

  template <class T>
  static __device__ __forceinline__ ColumnPixels find(const RowCall<Loss>& call, int64_t pair,
                                                      const T*) {
    ColumnPixels p;
    const int64_t pairs_per_outer = (call.args.inner + 1) / kPixels;
    p.exists = pair < call.args.outer * pairs_per_outer;
    const int64_t existing = p.exists ? pair : 0;
    if (call.args.outer * pairs_per_outer <= INT32_MAX) {
      p.outer = static_cast<uint32_t>(existing) / static_cast<uint32_t>(pairs_per_outer);
    } else {
      p.outer = existing / pairs_per_outer;
    }
    p.inner = (existing - p.outer * pairs_per_outer) * kPixels;
    p.both = p.exists && p.inner + 1 < call.args.inner;
    p.row = p.outer * call.args.inner + p.inner;
    const PixelPair<T> student(call.args.student, p.outer, p.inner, p.both, false);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const bool here = i == 0 ? p.exists : p.both;
      p.weight[i] = here ? call.weight(p.row + i) : 0.0f;
      p.label[i] = call.label(p.row + i, p.weight[i] != 0.0f);
      p.label_logit[i] = NAN;
      if (p.label[i] >= 0) {
        const float2 at_label = student.read(p.label[i]);
        p.label_logit[i] = i == 0 ? at_label.x : at_label.y;
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

  Arena arena(shared_memory());
  Part<Loss>* const parts = arena.template take<Part<Loss>>(
      slices > 1 ? static_cast<int64_t>(slices) * pairs * kPixels : 0);

  const int my_pair = thread_index() % pairs;
  const int my_slice = thread_index() / pairs;
  const ColumnPixels<Loss> pixels = ColumnPixels<Loss>::find(call, block_index() * pairs + my_pair,
                                                             static_cast<const T*>(nullptr));
  const int64_t classes = call.args.student.classes;
  const int64_t begin = static_cast<int64_t>(my_slice) * slice;
  const int64_t stored_end = begin + slice < classes ? begin + slice : classes;
  const int64_t end = pixels.any_counts() ? stored_end : begin;
  const PixelPair<T> student(call.args.student, pixels.outer, pixels.inner, pixels.both,
                             call.aligned);
  const PixelPair<T> teacher(call.args.teacher, pixels.outer, pixels.inner, pixels.both,
                             call.aligned);
  const Params& params = call.params;

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
        raw_student[k] = student.read(begin + k);
        raw_teacher[k] = teacher.read(begin + k);
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
    for (int64_t c = begin; c < end; ++c) {
      const float2 s = student.read(c), t = teacher.read(c);
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
  State whole[kPixels];
#pragma unroll
  for (int i = 0; i < kPixels; ++i) whole[i] = state[i];
  if (slices > 1) {  // the same for all threads
    const auto place = [&](int s, int i) { return (s * kPixels + i) * pairs + my_pair; };
    const int64_t mine = end - begin;
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
  }

  // ---- loss and gradient ----
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const bool here = i == 0 ? pixels.exists : pixels.both;
    if (my_slice == 0 && here) {
      const float loss = Loss::finish(params, whole[i], Loss::hard_state(whole[i]),
                                      pixels.label_logit[i], static_cast<float>(classes));
      call.row_loss[pixels.row + i] = pixels.weight[i] != 0.0f ? pixels.weight[i] * loss : 0.0f;
    }
  }
  if (call.args.grad.data != nullptr) {
    GradScale scale[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      scale[i] = {};  // all 0 for a pixel that does not count
      if (pixels.weight[i] != 0.0f) {
        scale[i] = Loss::grad_scale(params, whole[i], Loss::hard_state(whole[i]),
                                    pixels.weight[i] * call.factor(), static_cast<float>(classes));
        if (kInRegisters && kKeepExps) {
          scale[i] = Loss::for_part(params, scale[i], state[i].max_student - whole[i].max_student,
                                    state[i].max_teacher - whole[i].max_teacher);
        }
      }
    }
    const PixelPair<T> grad(call.args.grad, pixels.outer, pixels.inner, pixels.both, call.aligned);
    const auto finish = [&](int64_t c, const Exps(&exps)[kPixels]) {
      float g[kPixels];
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        // What a pixel that does not count holds may be NaN.
        g[i] = pixels.weight[i] != 0.0f ? Loss::grad(scale[i], exps[i]) : 0.0f;
        if (Loss::kHard && c == pixels.label[i]) g[i] -= scale[i].label;
      }
      grad.write(c, {g[0], g[1]});
    };
    const auto again = [&](float2 s, float2 t, Exps(&exps)[kPixels]) {
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        State unused = Loss::start(whole[i].max_student, whole[i].max_teacher);
        exps[i] = Loss::update(params, unused, pixel(s, i), pixel(t, i));
      }
    };
    if constexpr (kInRegisters) {
#pragma unroll
      for (int k = 0; k < kSliceClasses; ++k) {
        if (pixels.exists && begin + k < stored_end) {
          if constexpr (!kKeepExps) {
            make_new(raw_student[k]);
            make_new(raw_teacher[k]);
            again(raw_student[k], raw_teacher[k], kept[0]);
          }
          finish(begin + k, kept[kKeepExps ? k : 0]);
        }
      }
    } else {
      for (int64_t c = begin; pixels.exists && c < stored_end; ++c) {
        Exps exps[kPixels] = {};
        if (c < end) again(student.read(c), teacher.read(c), exps);
        finish(c, exps);
      }
    }
  }
}

}  // namespace fastkd::cuda
