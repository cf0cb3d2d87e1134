// SPDX-License-Identifier: Apache-2.0
// Rows of a student's logits whose teacher names K classes: a block a row, of any type and length,
// read twice. The named classes are marked in a bitmap and read -inf; their own gradient is written
// over that of the others.
#pragma once

#include "cuda/group.h"
#include "cuda/logit_reader.h"
#include "cuda/plan.h"

namespace fastkd::cuda {

// What threads hand on to each other comes in 32-bit words.
template <class Sums>
__device__ __forceinline__ Sums shuffle_xor(const Sums& mine, int distance) {
  constexpr int kWords = static_cast<int>(sizeof(Sums) / sizeof(uint32_t));
  uint32_t word[kWords];
  memcpy(word, &mine, sizeof(Sums));
#pragma unroll
  for (int i = 0; i < kWords; ++i) word[i] = __shfl_xor_sync(kAllLanes, word[i], distance);
  Sums other;
  memcpy(&other, word, sizeof(Sums));
  return other;
}

// combine(a, b) over all threads of the block, in one order for all. `exchange`: [kMaxParts].
template <class Sums, class Combine>
__device__ __forceinline__ Sums join_block(Sums mine, Sums* exchange, Combine combine) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Sums other = shuffle_xor(mine, distance);
    mine = (lane_index() & distance) == 0 ? combine(mine, other) : combine(other, mine);
  }
  __syncthreads();  // what stood in `exchange` has been read
  if (lane_index() == 0) exchange[warp_index()] = mine;
  __syncthreads();
  mine = exchange[0];
  for (int warp = 1; warp < block_threads() / kWarp; ++warp) {
    mine = combine(mine, exchange[warp]);
  }
  return mine;
}

// What the threads of a row know of the named classes before they sum, and the sums.
struct NamedMaxima {
  float student, teacher;
  uint32_t bad;  // whether an entry names no class, a class twice, or no log-probability
};
template <class Loss>
struct TopKSums {
  double logits;  // of all classes, for label smoothing
  typename Loss::template Rest<float> rest;
  typename Loss::template Named<float> named;
};

// The shared memory of a block.
template <class Loss>
struct TopKMemory {
  uint32_t* marks;  // [classes / 32] bits
  float* grad;      // [count] of the named classes
  NamedMaxima* maxima;
  TopKSums<Loss>* sums;
  float* divergence;

  __host__ __device__ __forceinline__ TopKMemory(Arena& arena, int64_t classes, int64_t count)
      : marks(arena.take<uint32_t>((classes + 31) / 32)),
        grad(arena.take<float>(count)),
        maxima(arena.take<NamedMaxima>(kMaxParts)),
        sums(arena.take<TopKSums<Loss>>(kMaxParts)),
        divergence(arena.take<float>(kMaxParts)) {}
};

template <class Loss>
__global__ void __launch_bounds__(kMemoryThreads, 1)
    topk_rows(const __grid_constant__ RowCall<Loss> call, const NamedClasses named) {
  using Reader = LogitReader<AnyType>;
  constexpr int kPerVector = Reader::kPerVector;
  using Rest = typename Loss::template Rest<float>;
  using Sums = TopKSums<Loss>;

  const int64_t classes = call.args.student.classes;
  Arena arena(shared_memory());
  const TopKMemory<Loss> memory(arena, classes, named.count);
  const int rank = thread_index(), size = block_threads();
  const int64_t row = block_index();
  float weight = call.weight(row);
  const bool counts = weight != 0.0f;
  const int64_t label = call.label(row, counts);
  const int64_t last = counts ? classes : 0;  // a row that does not count is not read
  const int64_t told = counts ? named.count : 0;
  const float* const values = named.values + row * named.count;
  const int64_t* const indices = named.indices + row * named.count;
  const Reader student(call, call.args.student, row, last);
  const float label_logit = label >= 0 ? student.one(label) : NAN;
  const auto is_class = [&](int64_t c) { return c >= 0 && c < classes; };

  // ---- the named classes ----
  for (int64_t i = rank; i < (classes + 31) / 32; i += size) memory.marks[i] = 0;
  __syncthreads();
  NamedMaxima maxima{kLowest, kLowest, 0};
  for (int64_t k = rank; k < told; k += size) {
    const float value = values[k];
    if (value == -INFINITY) continue;  // names none
    const int64_t c = indices[k];
    if (!is_class(c) || Loss::is_bad(call.params, value)) {
      maxima.bad = 1;
      continue;
    }
    const uint32_t bit = 1u << (c % 32);
    if ((atomicOr(memory.marks + c / 32, bit) & bit) != 0) maxima.bad = 1;
    maxima.student = max(student.one(c), maxima.student);
    maxima.teacher = max(Loss::teacher_log(call.params, value), maxima.teacher);
  }
  maxima = join_block(maxima, memory.maxima, [](const NamedMaxima& a, const NamedMaxima& b) {
    return NamedMaxima{max(a.student, b.student), max(a.teacher, b.teacher), a.bad | b.bad};
  });
  if (maxima.bad != 0) weight = NAN;  // nothing may stop the device to report it

  // take(k, c, s, t) of this thread's share of them.
  const auto for_named = [&](auto take) {
    for (int64_t k = rank; k < told; k += size) {
      const float value = values[k];
      const int64_t c = indices[k];
      if (value == -INFINITY || !is_class(c)) continue;
      take(k, c, student.one(c), Loss::teacher_log(call.params, value));
    }
  };

  // ---- sums ----
  Sums mine{0.0, Loss::start_rest(kLowest), Loss::start_named(maxima.student, maxima.teacher)};
  for_named([&](int64_t, int64_t, float s, float t) { Loss::take(call.params, mine.named, s, t); });
  const auto hide = [&](int64_t i, float (&s)[kPerVector]) {
    const uint32_t marks = memory.marks[i / 32] >> (i % 32);
#pragma unroll
    for (int j = 0; j < kPerVector; ++j) s[j] = (marks >> j & 1u) != 0 ? -INFINITY : s[j];
  };
  const int64_t step = static_cast<int64_t>(size) * kPerVector;
  const int64_t first = static_cast<int64_t>(rank) * kPerVector;
  for (int64_t i = first; i < last; i += step) {
    float s[kPerVector];
    student.read(i, s);
    if (Loss::smooths(call.params)) {
#pragma unroll
      for (int j = 0; j < kPerVector; ++j) mine.logits += i + j < last ? s[j] : 0.0f;
    }
    hide(i, s);
    float largest = mine.rest.max;
#pragma unroll
    for (int j = 0; j < kPerVector; ++j) largest = max(s[j], largest);
    if (largest > mine.rest.max) {
      mine.rest = Loss::combine(call.params, Loss::start_rest(largest), mine.rest);
    }
#pragma unroll
    for (int j = 0; j < kPerVector; ++j) Loss::update(call.params, mine.rest, s[j]);
  }
  const Sums sums = join_block(mine, memory.sums, [&](const Sums& a, const Sums& b) {
    return Sums{a.logits + b.logits, Loss::combine(call.params, a.rest, b.rest),
                Loss::add(a.named, b.named)};
  });
  const Rest rest = sums.rest;
  const auto whole = Loss::settle(call.params, rest, sums.named);

  // ---- loss and gradient ----
  typename Loss::GradScale scale{};  // all 0 for a row that does not count
  if (counts) {
    scale = Loss::grad_scale(call.params, whole, rest, weight * call.factor(),
                             static_cast<float>(classes));
  }
  float divergence = 0.0f;
  for_named([&](int64_t k, int64_t c, float s, float t) {
    divergence = divergence + Loss::divergence(call.params, whole, s, t);
    const float grad = Loss::grad_of_named(call.params, whole, scale, s, t);
    memory.grad[k] = c == label ? grad - scale.label : grad;
  });
  divergence = join_block(divergence, memory.divergence, [](float a, float b) { return a + b; });
  if (rank == 0) {
    const double logits = sums.logits - static_cast<double>(classes) * whole.max_hard;
    const float loss = Loss::finish(call.params, whole, divergence, label_logit,
                                    static_cast<float>(logits), static_cast<float>(classes));
    call.row_loss[row] = counts ? weight * loss : 0.0f;
  }
  if (call.args.grad.data != nullptr) {
    const auto rest_scale = Loss::template for_part<float>(call.params, scale, 0.0f);
    const LogitWriter<AnyType> grad(call, row, classes);
    for (int64_t i = first; i - first < classes; i += step) {  // all threads store together
      float s[kPerVector], g[kPerVector];
      student.read(i, s);
      if (i < classes) hide(i, s);
      Rest unused = Loss::start_rest(rest.max);
#pragma unroll
      for (int j = 0; j < kPerVector; ++j) {
        g[j] = Loss::grad_of_rest(rest_scale, Loss::update(call.params, unused, s[j]));
        if (Loss::kHard && i + j == label) g[j] -= scale.label;
      }
      if (call.reads_what_others_store()) __syncthreads();
      grad.write(i, g, lane_index(), kWarp);
      if (call.reads_what_others_store()) __syncthreads();
    }
    __syncthreads();
    for (int64_t k = rank; k < told; k += size) {
      if (values[k] != -INFINITY && is_class(indices[k])) {
        grad.write_one(indices[k], memory.grad[k]);
      }
    }
  }
}

}  // namespace fastkd::cuda
