// SPDX-License-Identifier: Apache-2.0
// Bugs of asynchronous copies.
#include "planted.h"

namespace planted {
namespace {

constexpr int64_t kFloats = kThreads * 4;
constexpr int64_t kBarrier = 2 * kFloats;  // where in shared memory, behind two stages
constexpr int64_t kBytes = kBarrier + 16;

struct alignas(16) Source {
  float values[4 * kThreads];
  Source() {
    for (int i = 0; i < 4 * kThreads; ++i) values[i] = static_cast<float>(1 + i / kThreads);
  }
  const float* step(int i) const { return values + i * kThreads; }
};

// Thread 0 makes the barrier and issues the copy of one stage.
void fetch(const float* from, int stage, uint32_t expected = kFloats) {
  if (thread() != 0) return;
  auto* barrier = shared_at<uint64_t>(kBarrier);
  copy_barrier_expect(barrier, expected);
  bulk_copy(shared_at<float>(stage * kFloats), from, kFloats, barrier);
}

void make_barrier() {
  if (thread() == 0) copy_barrier_init(shared_at<uint64_t>(kBarrier));
}

PLANT(copy_read_before_wait) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    fetch(source.step(0), 0);
    __syncthreads();
    out.data()[thread()] = shared_at<float>(0)[thread()];
    copy_barrier_wait(shared_at<uint64_t>(kBarrier), 0);
  });
  return out.all_are(1.0f);
}

// Only thread 0 waits; the others read.
PLANT(copy_awaited_by_one_thread) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    fetch(source.step(0), 0);
    if (thread() == 0) copy_barrier_wait(shared_at<uint64_t>(kBarrier), 0);
    out.data()[thread()] = shared_at<float>(0)[thread()];
  });
  return out.all_are(1.0f);
}

PLANT(copy_expects_too_many_bytes) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    fetch(source.step(0), 0, kFloats + 16);
    copy_barrier_wait(shared_at<uint64_t>(kBarrier), 0);
    out.data()[thread()] = shared_at<float>(0)[thread()];
  });
  return out.all_are(1.0f);
}

// The phase is over at once, before the bytes are in.
PLANT(copy_expects_no_bytes) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    fetch(source.step(0), 0, 0);
    copy_barrier_wait(shared_at<uint64_t>(kBarrier), 0);
    out.data()[thread()] = shared_at<float>(0)[thread()];
  });
  return out.all_are(1.0f);
}

PLANT(copy_awaited_with_wrong_parity) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    fetch(source.step(0), 0);
    copy_barrier_wait(shared_at<uint64_t>(kBarrier), 1);
    out.data()[thread()] = shared_at<float>(0)[thread()];
  });
  return out.all_are(1.0f);
}

// Steps through the source with one stage: `guarded` waits until all have read it.
void stream(bool guarded, const Source& source, Output& out) {
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    float sum = 0.0f;
    for (int step = 0; step < 4; ++step) {
      fetch(source.step(step), 0);
      copy_barrier_wait(shared_at<uint64_t>(kBarrier), static_cast<uint32_t>(step % 2));
      sum += shared_at<float>(0)[thread()];
      if (guarded) __syncthreads();
    }
    out.data()[thread()] = sum;
  });
}

PLANT(copy_overwrites_what_others_read) {
  const Source source;
  Output out(kThreads);
  stream(false, source, out);
  return out.all_are(10.0f);
}

PLANT(copy_barrier_used_before_init) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    fetch(source.step(0), 0);
    copy_barrier_wait(shared_at<uint64_t>(kBarrier), 0);
    out.data()[thread()] = shared_at<float>(0)[thread()];
  });
  return out.all_are(1.0f);
}

PLANT(copy_barrier_overwritten) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    fetch(source.step(0), 0);
    if (thread() == 0) shared_at<float>(0)[2 * kThreads] = 1.0f;
    copy_barrier_wait(shared_at<uint64_t>(kBarrier), 0);
    out.data()[thread()] = shared_at<float>(0)[thread()];
  });
  return out.all_are(1.0f);
}

PLANT(copy_of_odd_size) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    auto* barrier = shared_at<uint64_t>(kBarrier);
    if (thread() == 0) {
      copy_barrier_expect(barrier, kFloats - 4);
      bulk_copy(shared_memory(), source.step(0), kFloats - 4, barrier);
    }
    copy_barrier_wait(barrier, 0);
    out.data()[thread()] = shared_at<float>(0)[thread() / 2];
  });
  return out.all_are(1.0f);
}

PLANT(copy_from_misaligned_source) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    fetch(source.step(1) + 1, 0);
    copy_barrier_wait(shared_at<uint64_t>(kBarrier), 0);
    out.data()[thread()] = shared_at<float>(0)[thread() / 2];
  });
  return out.all_are(2.0f);
}

PLANT(copy_reads_past_end) {
  const std::vector<float4> source(kThreads / 4 - 1, float4{1.0f, 1.0f, 1.0f, 1.0f});
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    fetch(&source[0].x, 0);
    copy_barrier_wait(shared_at<uint64_t>(kBarrier), 0);
    out.data()[thread()] = shared_at<float>(0)[thread() / 2];
  });
  return out.all_are(1.0f);
}

// The block ends while the copy engine still writes into its shared memory.
PLANT(copy_never_awaited) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    make_barrier();
    __syncthreads();
    fetch(source.step(0), 0);
    out.data()[thread()] = 1.0f;
  });
  return out.all_are(1.0f);
}

// cp.async of four floats by every fourth thread; reads after waiting for all but `left` groups.
void copy_own(int left, bool barrier, int distance, const Source& source, Output& out) {
  run_blocks(1, kBytes, [&] {
    float* stage = shared_at<float>(0);
    if (thread() % 4 == 0) async_copy16(stage + thread(), source.step(0) + thread());
    async_commit();
    async_wait(left);
    if (barrier) __syncthreads();
    out.data()[thread()] = stage[(thread() + distance) % kThreads];
  });
}

PLANT(async_copy_awaited_too_little) {
  const Source source;
  Output out(kThreads);
  copy_own(1, true, 0, source, out);
  return out.all_are(1.0f);
}

PLANT(async_copy_without_barrier) {
  const Source source;
  Output out(kThreads);
  copy_own(0, false, 32, source, out);
  return out.all_are(1.0f);
}

PLANT(async_copy_not_committed) {
  const Source source;
  Output out(kThreads);
  run_blocks(1, kBytes, [&] {
    float* stage = shared_at<float>(0);
    if (thread() % 4 == 0) async_copy16(stage + thread(), source.step(0) + thread());
    async_wait(0);
    __syncthreads();
    out.data()[thread()] = stage[thread()];
  });
  return out.all_are(1.0f);
}

}  // namespace
}  // namespace planted
