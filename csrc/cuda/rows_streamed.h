// SPDX-License-Identifier: Apache-2.0
// Rows of any length and any mixture of types, read twice: sums relative to maxima that grow on the
// way, then the gradient. The second reading finds what the L2 cache kept of the first.
#pragma once

#include "cuda/group.h"
#include "cuda/logit_reader.h"
#include "cuda/plan.h"
#include "cuda/row_call.h"

namespace fastkd::cuda {

// The sums of the student's classes that the teacher lacks, from all threads of a row.
template <class Loss, Scope kScope>
__device__ __forceinline__ auto join_hard(const Group<kScope>& group,
                                          typename Loss::template HardState<float> mine,
                                          float classes, Part<Loss>* exchange) {
  using HardState = typename Loss::template HardState<float>;
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    if (distance >= group.lanes) continue;
    const HardState other{__shfl_xor_sync(kAllLanes, mine.max, distance),
                          __shfl_xor_sync(kAllLanes, mine.sum, distance),
                          __shfl_xor_sync(kAllLanes, mine.sum_logit, distance)};
    const float other_classes = __shfl_xor_sync(kAllLanes, classes, distance);
    const bool first = (lane_index() & distance) == 0;  // both lanes add in the same order
    mine = first ? Loss::combine_hard(mine, other, classes, other_classes)
                 : Loss::combine_hard(other, mine, other_classes, classes);
    classes += other_classes;
  }
  if constexpr (!kWithinWarp<kScope>) {
    __syncthreads();  // the sums that stood in `exchange` have been read
    if (lane_index() == 0) {
      exchange[warp_index()].state = Loss::start(mine.max, 0.0f);
      exchange[warp_index()].state.sum_hard = mine.sum;
      exchange[warp_index()].state.sum_logit = mine.sum_logit;
      exchange[warp_index()].classes = classes;
    }
    __syncthreads();
    mine = Loss::hard_state(exchange[0].state);
    classes = exchange[0].classes;
    for (int warp = 1; warp < group.size / kWarp; ++warp) {
      const Part<Loss>& part = exchange[warp];
      mine = Loss::combine_hard(mine, Loss::hard_state(part.state), classes, part.classes);
      classes += part.classes;
    }
  }
  return mine;
}

// Blocks that must fit a multiprocessor together; fewer where a second visit takes more registers.
template <class Loss, Scope kScope>
constexpr int kStreamedBlocks =
    kWithinWarp<kScope> ? (Loss::kRefines ? 4 : 6) : (Loss::kRefines ? 1 : 2);

// T: the logits' type, or AnyType for mixtures. `lanes` of a warp share a row (Scope::kLanes).
template <class Loss, class T, Scope kScope>
__global__ void __launch_bounds__(kWithinWarp<kScope> ? kWarpsThreads : kMemoryThreads,
                                  kStreamedBlocks<Loss, kScope>)
    rows_streamed(const __grid_constant__ RowCall<Loss> call, const int lanes) {
  using Reader = LogitReader<T>;
  constexpr int kPerVector = Reader::kPerVector;
  using State = typename Loss::template State<float>;
  using HardState = typename Loss::template HardState<float>;

  const Group<kScope> group(lanes);
  Arena arena(shared_memory());
  const Exchanges<Loss, kScope> exchange(arena);

  const bool exists = group.row < call.args.rows();
  const int64_t row = exists ? group.row : 0;
  const float weight = exists ? call.weight(row) : 0.0f;
  const bool counts = weight != 0.0f;
  const int64_t label = call.label(row, counts);
  const int64_t classes = call.args.student.classes;
  const int64_t shared = counts ? call.shared_classes() : 0;
  const int64_t last = counts ? classes : 0;
  const Reader student(call, call.args.student, row, shared);
  const Reader teacher(call, call.args.teacher, row, shared);
  Labels<float> labels{NAN, NAN};
  if (label >= 0) labels.student = student.one(label);
  if (Loss::kHidesLabel && label >= 0) labels.teacher = teacher.one(label);
  const auto read = [&](int64_t i, float (&s)[kPerVector], float (&t)[kPerVector]) {
    student.read(i, s);
    teacher.read(i, t);
    if constexpr (Loss::kHidesLabel) {
#pragma unroll
      for (int k = 0; k < kPerVector; ++k) {
        if (i + k == label) s[k] = t[k] = -INFINITY;
      }
    }
  };
  const int64_t step = static_cast<int64_t>(group.size) * kPerVector;
  const int64_t first = static_cast<int64_t>(group.rank) * kPerVector;

  // ---- sums ----
  State thread_state = Loss::start(kLowest, kLowest);
  const bool logits = Loss::wants_logits(call.params);
  float thread_classes = 0.0f;
  for (int64_t i = first; i < shared; i += step) {
    float s[kPerVector], t[kPerVector];
    read(i, s, t);
    float max_student = thread_state.max_student, max_teacher = thread_state.max_teacher;
#pragma unroll
    for (int k = 0; k < kPerVector; ++k) {
      max_student = max(s[k], max_student);
      max_teacher = max(t[k], max_teacher);
    }
    if (max_student > thread_state.max_student || max_teacher > thread_state.max_teacher) {
      thread_state =
          Loss::rebase(call.params, thread_state, max_student, max_teacher, thread_classes);
    }
    const int64_t left = shared - i;
#pragma unroll
    for (int k = 0; k < kPerVector; ++k) {
      Loss::update(call.params, thread_state, s[k], t[k]);
      if (logits) Loss::add_logit(thread_state, s[k], ThisLane{k < left});
    }
    thread_classes += static_cast<float>(left < kPerVector ? left : kPerVector);
  }
  const float max_student = lanes_max(thread_state.max_student, group.lanes);
  const float max_teacher = lanes_max(thread_state.max_teacher, group.lanes);
  thread_state = Loss::rebase(call.params, thread_state, max_student, max_teacher, thread_classes);
  const auto sum = [&](float x) { return lanes_sum(x, group.lanes); };
  const Part<Loss> part{Loss::across(call.params, thread_state, max_student, max_teacher, sum),
                        sum(thread_classes)};
  State state = group.template join<Loss>(call.params, part, exchange.sums);
  typename Loss::template Normalizer<float> normalizer{};  // all 0 for a row that does not count
  if constexpr (Loss::kRefines) {
    if (counts) normalizer = Loss::normalizer(state);
    State refined = Loss::start(state.max_student, state.max_teacher);
    for (int64_t i = first; i < shared; i += step) {
      float s[kPerVector], t[kPerVector];
      read(i, s, t);
      State unused = Loss::start(state.max_student, state.max_teacher);
#pragma unroll
      for (int k = 0; k < kPerVector; ++k) {
        auto exps = Loss::update(call.params, unused, s[k], t[k]);
        Loss::refine(call.params, refined, normalizer, exps);
      }
    }
    const Part<Loss> refined_part{
        Loss::across(call.params, refined, state.max_student, state.max_teacher, sum), 0.0f};
    state = Loss::with_refined(
        state, group.template join<Loss>(call.params, refined_part, exchange.refined));
  }
  HardState hard = Loss::hard_state(state);
  if (Loss::kHard && call.args.student.classes > call.args.teacher.classes) {
    HardState tail = Loss::start_hard(kLowest);
    float tail_classes = 0.0f;
    for (int64_t c = shared + group.rank; c < last; c += group.size) {
      const float s = student.one(c);
      if (s > tail.max) {
        tail = Loss::combine_hard(tail, Loss::start_hard(s), tail_classes, 0.0f);
      }
      Loss::update_hard(tail, s, AllLanes{});
      tail_classes += 1.0f;
    }
    Part<Loss>* parts = nullptr;
    if constexpr (!kWithinWarp<kScope>) parts = exchange.sums.warps;
    tail = join_hard<Loss>(group, tail, tail_classes, parts);
    hard = Loss::combine_hard(hard, tail, static_cast<float>(shared),
                              static_cast<float>(last - shared));
  }

  // ---- loss and gradient ----
  if (exists && group.rank == 0) {
    const float loss = Loss::finish(call.params, state, hard, labels, static_cast<float>(classes));
    call.row_loss[row] = counts ? weight * loss : 0.0f;
  }
  if (call.args.grad.data != nullptr) {
    typename Loss::template GradScale<float> scale{};  // all 0 for a row that does not count
    if (counts) {
      scale = Loss::grad_scale(call.params, state, hard, labels, weight * call.factor(),
                               static_cast<float>(classes));
    }
    const int64_t whole = call.shared_classes();
    const LogitWriter<T> grad(call, row, exists ? whole : 0);
    if constexpr (kWithinWarp<kScope>) group.meet();  // in place, all have read the label's logit
    for (int64_t i = first; i - first < whole; i += step) {  // the row's threads store together
      float s[kPerVector], t[kPerVector], g[kPerVector];
      read(i, s, t);
      if (call.reads_what_others_store()) group.meet();
      State unused = Loss::start(state.max_student, state.max_teacher);
#pragma unroll
      for (int k = 0; k < kPerVector; ++k) {
        auto exps = Loss::update(call.params, unused, s[k], t[k]);
        if constexpr (Loss::kRefines) Loss::refine(call.params, unused, normalizer, exps);
        g[k] = Loss::grad(scale, exps);
        if (Loss::kHasLabel && i + k == label) g[k] -= scale.label;
      }
      grad.write(i, g, group.rank % group.lanes, group.lanes);
      if (call.reads_what_others_store()) group.meet();
    }
    for (int64_t c = whole + group.rank; exists && c < classes; c += group.size) {
      float g = 0.0f;
      if (Loss::kHard && counts) g = Loss::grad_hard_only(scale, student.one(c) - hard.max);
      if (Loss::kHasLabel && c == label) g -= scale.label;
      grad.write_one(c, g);
    }
  }
}

}  // namespace fastkd::cuda
