// SPDX-License-Identifier: Apache-2.0
// Rows of logits whose classes are contiguous, a chunk at a time: what the row drivers share.
#pragma once

#include <string.h>

#include "core/logit_args.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/vec_memory.h"
#include "kernels.h"

namespace fastkd::cpu {

constexpr int64_t kChunk = 1024;  // classes: 2 x 4 KB of logits and 2-3 x 4 KB of exponentials

// Distance between planes of exponentials: whole vectors, and never near a multiple of 4 KB, where
// stores to one plane would falsely alias loads from another (measured: 1.5x slower at C = 1024).
inline int64_t plane_stride(int64_t classes) { return (classes + 1023) / 1024 * 1024 + 336; }

// Calls full(i) for every whole vector of [0, count) and tail(i, n) for the rest.
template <class Full, class Tail>
inline void for_vectors(int64_t count, Full full, Tail tail) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) full(i);
  if (i < count) tail(i, static_cast<int>(count - i));
}

// A chunk of logits as floats, and their maximum.
struct Chunk {
  const float* logits;
  float maximum;
  const char* next;  // where the source goes on
  int64_t bytes_per_logit;

  // A chunk ahead, so that memory works while this chunk is summed.
  void prefetch(int64_t i) const { __builtin_prefetch(next + i * bytes_per_logit); }
};

// Reads `count` logits that start at element `first`, widens a half type into `buffer`.
using ReadChunk = Chunk (*)(const void* data, int64_t first, int64_t count, float* buffer);

template <class T>
inline Chunk read_chunk(const void* data, int64_t first, int64_t count, float* buffer) {
  constexpr bool kWiden = sizeof(T) != sizeof(float);
  const T* source = static_cast<const T*>(data) + first;
  Vec maximum(kLowest);
  for_vectors(
      count,
      [&](int64_t i) {
        const Vec x = load(source + i);
        if (kWiden) x.store(buffer + i);
        maximum = max(x, maximum);
      },
      [&](int64_t i, int n) {
        const Vec x = load_first(source + i, n, -INFINITY);
        if (kWiden) x.store(buffer + i);
        maximum = max(x, maximum);
      });
  const float* logits = kWiden ? buffer : reinterpret_cast<const float*>(source);
  return {logits, max_lanes(maximum), reinterpret_cast<const char*>(source + count), sizeof(T)};
}

// Takes one class out of a chunk of `count`, which moves into `buffer` if it is not there.
inline void hide(Chunk& chunk, int64_t c, int64_t count, float* buffer) {
  if (chunk.logits != buffer) memcpy(buffer, chunk.logits, static_cast<size_t>(count) * 4);
  buffer[c] = -INFINITY;
  const Chunk without = read_chunk<float>(buffer, 0, count, buffer);
  chunk.logits = buffer;
  chunk.maximum = without.maximum;
}

inline ReadChunk chunk_reader(Dtype dtype) {
  ReadChunk reader = nullptr;
  visit(dtype, [&](auto type) { reader = read_chunk<typename decltype(type)::type>; });
  return reader;
}

// ---- rows ----

inline int64_t row_offset(const LogitArgs& args, const LogitView& view, int64_t row) {
  if (args.outer == 1) return row * view.stride_inner;
  return row / args.inner * view.stride_outer + row % args.inner * view.stride_inner;
}

inline float logit_at(const LogitView& view, int64_t element) {
  float logit = 0.0f;
  visit(view.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    logit = to_float(static_cast<const T*>(view.data)[element]);
  });
  return logit;
}

inline void zero_gradient(const LogitArgs& args, int64_t row) {
  const int64_t size = element_size(args.grad.dtype);
  memset(static_cast<char*>(args.grad.data) + row_offset(args, args.grad, row) * size, 0,
         static_cast<size_t>(args.grad.classes * size));
}

// one_row(row, scratch) of all rows, in threads that each have their own scratch. A row's work is
// that of so many elements.
template <class Call, class MakeScratch, class OneRow>
inline Outcome for_rows(const Call& call, int64_t elements, MakeScratch make_scratch,
                        OneRow one_row) {
  constexpr int64_t kElementsPerTask = 65536;  // about 35 us: waking a thread costs up to 20
  bool out_of_memory = false;
  auto body = [&](int64_t begin, int64_t end) {
    const auto scratch = make_scratch();
    if (!scratch.ok()) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t row = begin; row < end; ++row) one_row(row, scratch);
    if (call.wants_grad()) fence_streaming();
  };
  if (!parallel_for(call.args.rows(), kElementsPerTask / (elements + 32) + 1, body)) {
    return {Status::kThreadPoolFailed, -1};
  }
  if (out_of_memory) return {Status::kOutOfMemory, -1};
  return {};
}

// Writes grad_at(i), lanes along the classes of a chunk.
template <class T, class GradAt>
inline void write_chunk(T* out, int64_t count, bool streaming, GradAt grad_at) {
  const auto tail = [&](int64_t i, int n) { store_first(out + i, grad_at(i), n); };
  if (streaming && reinterpret_cast<uintptr_t>(out) % (sizeof(T) * kLanes) == 0) {
    for_vectors(count, [&](int64_t i) { store_streaming(out + i, grad_at(i)); }, tail);
  } else {
    for_vectors(count, [&](int64_t i) { store(out + i, grad_at(i)); }, tail);
  }
}

}  // namespace fastkd::cpu
