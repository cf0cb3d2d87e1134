// SPDX-License-Identifier: Apache-2.0
// Bugs in a block's shared memory: missing barriers, wrong sizes, what nobody wrote.
#include "planted.h"

namespace planted {
namespace {

constexpr int64_t kFloats = kThreads * 4;  // bytes of a float a thread

PLANT(missing_barrier) {
  Output out(kThreads);
  run_blocks(1, kFloats, [&] {
    float* values = shared_at<float>(0);
    values[thread()] = 1.0f;
    out.data()[thread()] = values[(thread() + 1) % kThreads];
  });
  return out.all_are(1.0f);
}

// A warp that runs ahead overwrites what others still read.
PLANT(missing_barrier_in_loop) {
  Output out(kThreads);
  run_blocks(1, kFloats, [&] {
    float* values = shared_at<float>(0);
    float errors = 0.0f;
    for (int step = 0; step < 4; ++step) {
      values[thread()] = static_cast<float>(step);
      __syncthreads();
      errors += fabsf(values[(thread() + 32) % kThreads] - static_cast<float>(step));
    }
    out.data()[thread()] = errors;
  });
  return out.all_are(0.0f);
}

PLANT(missing_syncwarp) {
  Output out(kThreads);
  run_blocks(1, kFloats, [&] {
    float* values = shared_at<float>(32 * 4 * warp());
    values[lane()] = 1.0f;
    out.data()[thread()] = values[31 - lane()];
  });
  return out.all_are(1.0f);
}

// Half a warp waits for itself, and reads what the other half writes.
PLANT(syncwarp_of_too_few) {
  Output out(kThreads);
  run_blocks(1, kFloats, [&] {
    float* values = shared_at<float>(32 * 4 * warp());
    values[lane()] = 1.0f;
    __syncwarp(lane() < 16 ? 0x0000ffffu : 0xffff0000u);
    out.data()[thread()] = values[31 - lane()];
  });
  return out.all_are(1.0f);
}

PLANT(shuffle_taken_for_a_barrier) {
  Output out(kThreads);
  run_blocks(1, kFloats, [&] {
    float* values = shared_at<float>(32 * 4 * warp());
    values[lane()] = 1.0f;
    const float zero = __shfl_sync(kAllLanes, 0.0f, 0);
    out.data()[thread()] = values[31 - lane()] + zero;
  });
  return out.all_are(1.0f);
}

PLANT(lost_update_across_warps) {
  Output out(1);
  run_blocks(1, 16, [&] {
    int* count = shared_at<int>(0);
    if (thread() == 0) *count = 0;
    __syncthreads();
    if (lane() == 0) *count = *count + 1;
    __syncthreads();
    if (thread() == 0) out.data()[0] = static_cast<float>(*count);
  });
  return out.all_are(2.0f);
}

PLANT(uninitialised_shared) {
  Output out(kThreads);
  run_blocks(1, kFloats, [&] {
    float* values = shared_at<float>(0);
    if (thread() != 5) values[thread()] = 1.0f;
    __syncthreads();
    out.data()[thread()] = values[thread()];
  });
  return out.all_are(1.0f);
}

// The maximum drops the NaN that shared memory is filled with.
PLANT(uninitialised_shared_in_maximum) {
  Output out(kThreads);
  run_blocks(1, kFloats, [&] {
    float* values = shared_at<float>(0);
    if (thread() != 5) values[thread()] = 1.0f;
    __syncthreads();
    const float a = values[thread()], b = values[kThreads - 1 - thread()];
    float largest = 0.0f;
    if (a > largest) largest = a;
    if (b > largest) largest = b;
    out.data()[thread()] = largest;
  });
  return out.all_are(1.0f);
}

// Two arrays; `stray` is the element of the first that is written beyond its end.
void overrun(int64_t stray, Output& out) {
  run_blocks(1, kFloats + kFloats + 2 * kRedZone, [&] {
    auto* first = static_cast<float*>(declare_shared(shared_memory(), kFloats));
    auto* second =
        static_cast<float*>(declare_shared(shared_memory() + kFloats + kRedZone, kFloats));
    if (thread() == 0) first[stray] = 5.0f;
    __syncthreads();
    first[thread()] = 1.0f;
    second[thread()] = 1.0f;
    out.data()[thread()] = first[thread()] + second[thread()];
  });
}

PLANT(overrun_by_one_element) {
  Output out(kThreads);
  overrun(kThreads, out);
  return out.all_are(2.0f);
}

PLANT(overrun_beyond_shared_memory) {
  Output out(kThreads);
  overrun(kThreads + 4 + kThreads + 4 + 15, out);  // 64 bytes behind the last red zone
  return out.all_are(2.0f);
}

PLANT(write_before_shared_memory) {
  Output out(kThreads);
  overrun(-1, out);
  return out.all_are(2.0f);
}

// Jumps over the red zone to where something else is written later: nobody can tell.
PLANT(overrun_into_next_array) {
  Output out(kThreads);
  overrun(kThreads + 16, out);
  return out.all_are(2.0f);
}

PLANT(shared_memory_too_small) {
  Output out(kThreads);
  run_blocks(1, kFloats, [&] {
    auto* values = static_cast<float*>(declare_shared(shared_memory(), kFloats + 4));
    values[thread()] = 1.0f;
    out.data()[thread()] = values[thread()];
  });
  return out.all_are(1.0f);
}

PLANT(misaligned_vector) {
  Output out(kThreads);
  run_blocks(1, kFloats + 16, [&] {
    float* values = shared_at<float>(0);
    values[thread()] = 1.0f;
    __syncthreads();
    const float* from = values + thread() / 4 * 4 + 1;
    check_aligned(from, 16);
    out.data()[thread()] = reinterpret_cast<const float4*>(from)->x;
  });
  return out.all_are(1.0f);
}

}  // namespace
}  // namespace planted
