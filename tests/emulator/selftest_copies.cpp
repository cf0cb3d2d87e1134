// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies, used as kernels use them.
#include "selftest.h"

namespace selftest {
namespace {

constexpr int kThreads = 64;
constexpr int64_t kStageBytes = kThreads * 4;

struct alignas(16) Source {
  float values[16 * kThreads];
  Source() {
    for (int i = 0; i < 16 * kThreads; ++i) values[i] = static_cast<float>(i / kThreads);
  }
  const float* step(int i) const { return values + i * kThreads; }
};

// A ring of stages: thread 0 keeps `kStages` copies in flight.
template <int kStages>
bool ring_brings_every_step() {
  const Source source;
  std::vector<float> sums(2 * kThreads);
  launch("ring", {2, kThreads, 1, kStages * (kStageBytes + 16)}, [&] {
    auto* barriers = reinterpret_cast<uint64_t*>(shared_memory() + kStages * kStageBytes);
    const auto stage = [](int i) {
      return reinterpret_cast<float*>(shared_memory() + i % kStages * kStageBytes);
    };
    const auto fetch = [&](int step) {
      uint64_t* barrier = barriers + step % kStages;
      copy_barrier_expect(barrier, kStageBytes);
      bulk_copy(stage(step), source.step(step), kStageBytes / 2, barrier);
      bulk_copy(stage(step) + kThreads / 2, source.step(step) + kThreads / 2, kStageBytes / 2,
                barrier);
    };
    if (thread() == 0) {
      for (int i = 0; i < kStages; ++i) copy_barrier_init(barriers + i);
      for (int i = 0; i < kStages; ++i) fetch(i);
    }
    __syncthreads();
    float sum = 0.0f;
    for (int step = 0; step < 16; ++step) {
      copy_barrier_wait(barriers + step % kStages, static_cast<uint32_t>(step / kStages % 2));
      sum += stage(step)[kThreads - 1 - thread()];
      __syncthreads();
      if (thread() == 0 && step + kStages < 16) fetch(step + kStages);
    }
    sums[global_thread()] = sum;
  });
  return all_equal(sums, 120.0f);
}

CASE(ring_of_one_stage) { return ring_brings_every_step<1>(); }
CASE(ring_of_two_stages) { return ring_brings_every_step<2>(); }
CASE(ring_of_three_stages) { return ring_brings_every_step<3>(); }

// Copies may complete before their bytes are expected; the phase before the first is over.
CASE(copy_before_expect) {
  const Source source;
  std::vector<float> got(kThreads);
  launch("early_copy", {1, kThreads, 1, kStageBytes + 16}, [&] {
    auto* barrier = reinterpret_cast<uint64_t*>(shared_memory() + kStageBytes);
    if (thread() == 0) copy_barrier_init(barrier);
    __syncthreads();
    if (thread() == kThreads - 1) {
      copy_barrier_wait(barrier, 1);
      bulk_copy(shared_memory(), source.step(3), kStageBytes, barrier);
      copy_barrier_expect(barrier, kStageBytes);
    }
    copy_barrier_wait(barrier, 0);
    got[threadIdx.x] = reinterpret_cast<const float*>(shared_memory())[thread()];
  });
  return all_equal(got, 3.0f);
}

CASE(async_copies_in_groups) {
  const Source source;
  std::vector<float> sums(kThreads);
  launch("groups", {1, kThreads, 1, 2 * kStageBytes}, [&] {
    const auto stage = [](int i) {
      return reinterpret_cast<float*>(shared_memory() + i % 2 * kStageBytes);
    };
    const auto fetch = [&](int step) {
      if (step < 16 && thread() % 4 == 0) {
        async_copy16(stage(step) + thread(), source.step(step) + thread());
      }
      async_commit();
    };
    float sum = 0.0f;
    fetch(0);
    for (int step = 0; step < 16; ++step) {
      fetch(step + 1);
      async_wait(1);
      __syncthreads();
      sum += stage(step)[kThreads - 1 - thread()];
      __syncthreads();
    }
    async_wait(0);
    sums[threadIdx.x] = sum;
  });
  return all_equal(sums, 120.0f);
}

}  // namespace
}  // namespace selftest
