// SPDX-License-Identifier: Apache-2.0
// Rows whose classes are contiguous and fit the registers of the threads that share them: lanes of
// a warp, a block, or a cluster of blocks. Student and teacher are read once and the gradient is
// written from what the registers kept.
#pragma once

#include "cuda/group.h"
#include "cuda/plan.h"
#include "cuda/row_call.h"
#include "cuda/vector_memory.h"

namespace fastkd::cuda {

// Threads of a block, and blocks that must fit a multiprocessor together: while one row waits for
// its sums another must keep the memory busy.
template <Scope kScope, int kItems>
struct RegisterLaunch {
  static constexpr int kThreads = kWithinWarp<kScope> ? kWarpsThreads : kRegisterThreads;
  static constexpr int kBlocks = !kWithinWarp<kScope> ? 2 : kItems == 8 ? 8 : kItems == 16 ? 6 : 3;
};

// `share`: lanes of a row (Scope::kLanes) or blocks of a row (Scope::kCluster). A block of a
// cluster takes `slice` neighbouring classes, a whole number of vectors.
template <class Loss, class T, int kItems, Scope kScope>
__device__ __forceinline__ void row_in_registers(const RowCall<Loss>& call, const int share,
                                                 const int slice) {
  constexpr int kPerVector = kWidth<T>;
  constexpr int kVectors = kItems / kPerVector;
  // Three exponentials a class would not fit: then the logits stay, and are exponentiated again.
  constexpr bool kKeepExps = Loss::kExps == 2;
  static_assert(!(kKeepExps && Loss::kRefines));
  using Exps = typename Loss::template Exps<float>;
  using State = typename Loss::template State<float>;

  const Group<kScope> group(share);
  group.begin();
  Arena arena(shared_memory());
  const Exchanges<Loss, kScope> exchange(arena);

  const int classes = static_cast<int>(call.args.student.classes);
  const bool exists = group.row < call.args.rows();
  const int64_t row = exists ? group.row : 0;
  const float weight = exists ? call.weight(row) : 0.0f;
  const bool counts = weight != 0.0f;
  const T* const student = call.template row_of<const T>(call.args.student, row);
  const T* const teacher = call.template row_of<const T>(call.args.teacher, row);
  const int label = static_cast<int>(call.label(row, counts));

  // Classes of this block; none are read in a row that does not count.
  const int begin = group.block * slice;
  const int end = !counts ? begin : begin + slice < classes ? begin + slice : classes;
  const auto first_class = [&](int v) {
    return begin + (v * group.size + group.rank) * kPerVector;
  };

  Words raw_student[kVectors], raw_teacher[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    raw_student[v] = load_vector(student, first_class(v), end, call.aligned);
    raw_teacher[v] = load_vector(teacher, first_class(v), end, call.aligned);
  }
  Labels<float> labels{NAN, NAN};
  if (label >= 0) labels.student = widen(student[label]);
  if constexpr (Loss::kHidesLabel) {
    if (label >= 0) labels.teacher = widen(teacher[label]);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      hide<T>(raw_student[v], label - first_class(v));
      hide<T>(raw_teacher[v], label - first_class(v));
    }
  }

  const float max_student = lanes_max(largest<T>(raw_student), group.lanes);
  const float max_teacher = lanes_max(largest<T>(raw_teacher), group.lanes);

  const auto exponentiate = [&](int v, State& state, Exps* exps) {
    float s[kPerVector], t[kPerVector];
    unpack<T>(raw_student[v], s);
    unpack<T>(raw_teacher[v], t);
#pragma unroll
    for (int i = 0; i < kPerVector; ++i) exps[i] = Loss::update(call.params, state, s[i], t[i]);
  };
  State thread_state = Loss::start(max_student, max_teacher);
  Exps kept[kKeepExps ? kVectors : 1][kPerVector];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) exponentiate(v, thread_state, kept[kKeepExps ? v : 0]);
  float warp_classes = 0.0f;
  if (Loss::wants_logits(call.params)) {  // the same for all threads
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float s[kPerVector];
      unpack<T>(raw_student[v], s);
      const int left = end - first_class(v);
#pragma unroll
      for (int i = 0; i < kPerVector; ++i) Loss::add_logit(thread_state, s[i], ThisLane{i < left});
      const int warp_left = left + group.rank % group.lanes * kPerVector;
      const int full = group.lanes * kPerVector;
      warp_classes += static_cast<float>(warp_left < 0 ? 0 : warp_left < full ? warp_left : full);
    }
  }
  const Part<Loss> part{Loss::across(call.params, thread_state, max_student, max_teacher,
                                     [&](float x) { return lanes_sum(x, group.lanes); }),
                        warp_classes};
  State state = group.template join<Loss>(call.params, part, exchange.sums);
  typename Loss::template Normalizer<float> normalizer{};  // all 0 for a row that does not count
  const auto refine = [&](State& refined, Exps* exps) {
#pragma unroll
    for (int i = 0; i < kPerVector; ++i) Loss::refine(call.params, refined, normalizer, exps[i]);
  };
  if constexpr (Loss::kRefines) {
    if (counts) {
      normalizer = Loss::for_part(call.params, Loss::normalizer(state),
                                  max_student - state.max_student, max_teacher - state.max_teacher);
    }
    State refined = Loss::start(state.max_student, state.max_teacher);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      make_new(raw_student[v]);
      make_new(raw_teacher[v]);
      State unused = Loss::start(max_student, max_teacher);
      exponentiate(v, unused, kept[0]);
      refine(refined, kept[0]);
    }
    const Part<Loss> refined_part{
        Loss::across(call.params, refined, state.max_student, state.max_teacher,
                     [&](float x) { return lanes_sum(x, group.lanes); }),
        0.0f};
    group.begin();
    state = Loss::with_refined(
        state, group.template join<Loss>(call.params, refined_part, exchange.refined));
  }
  const auto hard = Loss::hard_state(state);

  if (exists && group.rank == 0 && group.block == 0) {
    const float loss = Loss::finish(call.params, state, hard, labels, classes);
    call.row_loss[row] = counts ? weight * loss : 0.0f;
  }
  if (call.args.grad.data != nullptr) {                // the same for all threads
    typename Loss::template GradScale<float> scale{};  // all 0 for a row that does not count
    if (counts) {
      scale = Loss::grad_scale(call.params, state, hard, labels, weight * call.factor(),
                               static_cast<float>(classes));
      if constexpr (!kWithinWarp<kScope>) {
        scale = Loss::for_part(call.params, scale, max_student - state.max_student,
                               max_teacher - state.max_teacher);
      }
    }
    T* const grad = call.template row_of<T>(call.args.grad, row);
    const int stored_end = !exists ? begin : begin + slice < classes ? begin + slice : classes;
    // In place, all have read what is stored now: a block and a cluster have met to join their
    // sums.
    if constexpr (kWithinWarp<kScope>) group.meet();
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (!kKeepExps) {
        make_new(raw_student[v]);
        make_new(raw_teacher[v]);
        State unused = Loss::start(max_student, max_teacher);
        exponentiate(v, unused, kept[0]);
        if constexpr (Loss::kRefines) refine(unused, kept[0]);
      }
      float g[kPerVector];
#pragma unroll
      for (int i = 0; i < kPerVector; ++i) {
        g[i] = Loss::grad(scale, kept[kKeepExps ? v : 0][i]);
      }
      if constexpr (Loss::kHasLabel) {
        const int at = label - first_class(v);
        if (label >= 0 && at >= 0 && at < kPerVector) {
#pragma unroll
          for (int i = 0; i < kPerVector; ++i) g[i] -= i == at ? scale.label : 0.0f;
        }
      }
      store_vector(grad, first_class(v), stored_end, call.aligned, pack<T>(g),
                   group.rank % group.lanes, group.lanes);
    }
  }
}

template <class Loss, class T, int kItems, Scope kScope>
__global__ void __launch_bounds__(RegisterLaunch<kScope, kItems>::kThreads,
                                  RegisterLaunch<kScope, kItems>::kBlocks)
    rows_in_registers(const __grid_constant__ RowCall<Loss> call, const int share,
                      const int slice) {
  if constexpr (kScope != Scope::kCluster || kHasClusters) {
    row_in_registers<Loss, T, kItems, kScope>(call, share, slice);
  }
}

}  // namespace fastkd::cuda
