// SPDX-License-Identifier: Apache-2.0
// Rows too long for the registers of a cluster: each block keeps its slice of the logits in shared
// memory, brought there by the copy engine, and exponentiates it twice. sm_90 and later.
#pragma once

#include "cuda/group.h"
#include "cuda/plan.h"
#include "cuda/row_call.h"
#include "cuda/vector_memory.h"

namespace fastkd::cuda {

// The shared memory of a block.
template <class Loss, class T>
struct SharedRow {
  Exchanges<Loss, Scope::kCluster> exchange;
  uint64_t* copied;
  T *student, *teacher;  // [slice]

  __host__ __device__ __forceinline__ SharedRow(Arena& arena, int slice)
      : exchange(arena),
        copied(arena.take<uint64_t>(1)),
        student(arena.take<T>(slice)),
        teacher(arena.take<T>(slice)) {}

  // plan() counts on it.
  static_assert((Loss::kRefines ? 4 : 2) * kMaxParts * sizeof(Part<Loss>) + 16 <= kSharedSums);
};

// `blocks` of a cluster take `slice` neighbouring classes each, a whole number of vectors.
template <class Loss, class T>
__device__ __forceinline__ void row_in_shared(const RowCall<Loss>& call, const int blocks,
                                              const int slice) {
  constexpr int kPerVector = kWidth<T>;
  using State = typename Loss::template State<float>;

  const Group<Scope::kCluster> group(blocks);
  group.begin();
  Arena arena(shared_memory());
  const SharedRow<Loss, T> memory(arena, slice);

  const int classes = static_cast<int>(call.args.student.classes);
  const int64_t row = group.row;
  const float weight = call.weight(row);
  const bool counts = weight != 0.0f;
  const T* const student = call.template row_of<const T>(call.args.student, row);
  const T* const teacher = call.template row_of<const T>(call.args.teacher, row);
  const int label = static_cast<int>(call.label(row, counts));
  Labels<float> labels{NAN, NAN};
  if (label >= 0) labels.student = widen(student[label]);
  if (Loss::kHidesLabel && label >= 0) labels.teacher = widen(teacher[label]);

  const int begin = group.block * slice;
  const int stored_end = begin + slice < classes ? begin + slice : classes;
  const int end = counts ? stored_end : begin;  // a row that does not count is not read
  const int count = end > begin ? end - begin : 0;
  const int step = group.size * kPerVector;
  const int first = group.rank * kPerVector;  // in the slice

  // ---- the slice comes ----
  if (call.aligned && classes % kPerVector == 0) {
    if (group.rank == 0) {
      copy_barrier_init(memory.copied);
      const uint32_t bytes = static_cast<uint32_t>(count) * sizeof(T);
      copy_barrier_expect(memory.copied, 2 * bytes);
      if (bytes != 0) {
        bulk_copy(memory.student, student + begin, bytes, memory.copied);
        bulk_copy(memory.teacher, teacher + begin, bytes, memory.copied);
      }
    }
    __syncthreads();
    copy_barrier_wait(memory.copied, 0);
  } else {  // each thread brings what it will read itself
    for (int i = first; i < count; i += step) {
      store_words(memory.student + i, load_vector(student, begin + i, end, call.aligned));
      store_words(memory.teacher + i, load_vector(teacher, begin + i, end, call.aligned));
    }
  }

  if constexpr (Loss::kHidesLabel) {
    __syncthreads();
    if (group.rank == 0 && label >= begin && label < end) {
      memory.student[label - begin] = memory.teacher[label - begin] = narrow<T>(-INFINITY);
    }
    __syncthreads();
  }

  // ---- maxima and sums ----
  const auto read = [&](int i, float (&s)[kPerVector], float (&t)[kPerVector]) {
    unpack<T>(load_words(memory.student + i), s);
    unpack<T>(load_words(memory.teacher + i), t);
  };
  float max_student = kLowest, max_teacher = kLowest;
  for (int i = first; i < count; i += step) {
    float s[kPerVector], t[kPerVector];
    read(i, s, t);
#pragma unroll
    for (int k = 0; k < kPerVector; ++k) {
      const bool inside = i + k < count;
      max_student = max(inside ? s[k] : kLowest, max_student);
      max_teacher = max(inside ? t[k] : kLowest, max_teacher);
    }
  }
  max_student = lanes_max(max_student, kWarp);
  max_teacher = lanes_max(max_teacher, kWarp);

  State thread_state = Loss::start(max_student, max_teacher);
  const bool logits = Loss::wants_logits(call.params);
  float thread_classes = 0.0f;
  for (int i = first; i < count; i += step) {
    float s[kPerVector], t[kPerVector];
    read(i, s, t);
#pragma unroll
    for (int k = 0; k < kPerVector; ++k) {
      const bool inside = i + k < count;
      Loss::update(call.params, thread_state, inside ? s[k] : -INFINITY, inside ? t[k] : -INFINITY);
      if (logits) Loss::add_logit(thread_state, s[k], ThisLane{inside});
    }
    thread_classes += static_cast<float>(count - i < kPerVector ? count - i : kPerVector);
  }
  const auto sum = [](float x) { return lanes_sum(x, kWarp); };
  const Part<Loss> part{Loss::across(call.params, thread_state, max_student, max_teacher, sum),
                        sum(thread_classes)};
  State state = group.template join<Loss>(call.params, part, memory.exchange.sums);
  typename Loss::template Normalizer<float> normalizer{};
  if constexpr (Loss::kRefines) {
    if (counts) normalizer = Loss::normalizer(state);
    State refined = Loss::start(state.max_student, state.max_teacher);
    for (int i = first; i < count; i += step) {
      float s[kPerVector], t[kPerVector];
      read(i, s, t);
      State unused = Loss::start(state.max_student, state.max_teacher);
#pragma unroll
      for (int k = 0; k < kPerVector; ++k) {
        const bool inside = i + k < count;
        auto exps =
            Loss::update(call.params, unused, inside ? s[k] : -INFINITY, inside ? t[k] : -INFINITY);
        Loss::refine(call.params, refined, normalizer, exps);
      }
    }
    const Part<Loss> refined_part{
        Loss::across(call.params, refined, state.max_student, state.max_teacher, sum), 0.0f};
    group.begin();
    state = Loss::with_refined(
        state, group.template join<Loss>(call.params, refined_part, memory.exchange.refined));
  }
  const auto hard = Loss::hard_state(state);

  // ---- loss and gradient ----
  if (group.rank == 0 && group.block == 0) {
    const float loss = Loss::finish(call.params, state, hard, labels, classes);
    call.row_loss[row] = counts ? weight * loss : 0.0f;
  }
  if (call.args.grad.data != nullptr) {
    typename Loss::template GradScale<float> scale{};  // all 0 for a row that does not count
    if (counts) {
      scale = Loss::grad_scale(call.params, state, hard, labels, weight * call.factor(),
                               static_cast<float>(classes));
    }
    T* const grad = call.template row_of<T>(call.args.grad, row);
    // All lanes store together: the bound is the warp's.
    for (int i = first; i - lane_index() * kPerVector < stored_end - begin; i += step) {
      float g[kPerVector] = {};
      if (i < count) {
        float s[kPerVector], t[kPerVector];
        read(i, s, t);
        State unused = Loss::start(state.max_student, state.max_teacher);
#pragma unroll
        for (int k = 0; k < kPerVector; ++k) {
          auto exps = Loss::update(call.params, unused, s[k], t[k]);
          if constexpr (Loss::kRefines) Loss::refine(call.params, unused, normalizer, exps);
          g[k] = Loss::grad(scale, exps);
          if (Loss::kHasLabel && begin + i + k == label) g[k] -= scale.label;
        }
      }
      store_vector(grad, begin + i, stored_end, call.aligned, pack<T>(g), lane_index(), kWarp);
    }
  }
}

template <class Loss, class T>
__global__ void __launch_bounds__(kMemoryThreads, 1)
    rows_in_shared(const __grid_constant__ RowCall<Loss> call, const int blocks, const int slice) {
  if constexpr (kHasClusters) row_in_shared<Loss, T>(call, blocks, slice);
}

}  // namespace fastkd::cuda
