// SPDX-License-Identifier: Apache-2.0
// Bugs between blocks: clusters that use each other's shared memory, and global memory.
#include "planted.h"

namespace planted {
namespace {

constexpr int64_t kFloats = kThreads * 4;

void sync_cluster(Site site = Site::current()) {
  arrive_cluster(site);
  wait_cluster(site);
}

float& out_of_block(Output& out) { return out.data()[blockIdx.x * kThreads + threadIdx.x]; }

PLANT(peer_written_without_barrier) {
  Output out(2 * kThreads);
  run_pair(kFloats, [&] {
    float* values = shared_at<float>(0);
    sync_cluster();
    peer_shared(values, 1 - cluster_rank())[thread()] = 1.0f;
    out_of_block(out) = values[thread()];
    sync_cluster();
  });
  return out.all_are(1.0f);
}

PLANT(peer_written_with_block_barrier) {
  Output out(2 * kThreads);
  run_pair(kFloats, [&] {
    float* values = shared_at<float>(0);
    sync_cluster();
    peer_shared(values, 1 - cluster_rank())[thread()] = 1.0f;
    __syncthreads();
    out_of_block(out) = values[thread()];
    sync_cluster();
  });
  return out.all_are(1.0f);
}

PLANT(peer_read_before_wait) {
  Output out(2 * kThreads);
  run_pair(kFloats, [&] {
    float* values = shared_at<float>(0);
    sync_cluster();
    values[thread()] = 1.0f;
    arrive_cluster();
    out_of_block(out) = peer_shared(values, 1 - cluster_rank())[thread()];
    wait_cluster();
    sync_cluster();
  });
  return out.all_are(1.0f);
}

PLANT(peer_has_not_started) {
  Output out(2 * kThreads);
  run_pair(kFloats, [&] {
    float* values = shared_at<float>(0);
    peer_shared(values, 1 - cluster_rank())[thread()] = 1.0f;
    sync_cluster();
    out_of_block(out) = values[thread()];
  });
  return out.all_are(1.0f);
}

PLANT(peer_has_exited) {
  Output out(2 * kThreads);
  run_pair(kFloats, [&] {
    float* values = shared_at<float>(0);
    values[thread()] = 1.0f;
    sync_cluster();
    out_of_block(out) = peer_shared(values, 1 - cluster_rank())[thread()];
  });
  return out.all_are(1.0f);
}

PLANT(peer_of_wrong_rank) {
  Output out(2 * kThreads);
  run_pair(kFloats, [&] {
    float* values = shared_at<float>(0);
    values[thread()] = 1.0f;
    sync_cluster();
    out_of_block(out) = *peer_shared(values + thread(), cluster_rank() + 1);
    sync_cluster();
  });
  return out.all_are(1.0f);
}

PLANT(one_block_skips_cluster_barrier) {
  Output out(2 * kThreads);
  run_pair(0, [&] {
    out_of_block(out) = 1.0f;
    if (cluster_rank() == 0) sync_cluster();
  });
  return out.all_are(1.0f);
}

PLANT(exit_between_arrive_and_wait) {
  Output out(2 * kThreads);
  run_pair(0, [&] {
    out_of_block(out) = 1.0f;
    arrive_cluster();
  });
  return out.all_are(1.0f);
}

PLANT(lost_update_across_blocks) {
  Output out(1);
  out.data()[0] = 0.0f;
  run_blocks(4, 0, [&] {
    if (thread() == 0) out.data()[0] += 1.0f;
  });
  return out.all_are(4.0f);
}

PLANT(two_blocks_write_one_row) {
  Output out(1);
  run_blocks(4, 0, [&] {
    if (thread() == 0) out.data()[0] = static_cast<float>(blockIdx.x / 2);
  });
  return out.all_are(1.0f);
}

// The last block adds up what the others wrote.
void sum_in_last_block(bool fenced, Output& out) {
  constexpr int kBlocks = 4;
  std::vector<float> partial(kBlocks, -1.0f);
  unsigned done = 0;
  run_blocks(kBlocks, 0, [&] {
    if (thread() != 0) return;
    partial[blockIdx.x] = 1.0f;
    if (fenced) __threadfence();
    if (atomicAdd(&done, 1) != kBlocks - 1) return;
    if (fenced) __threadfence();
    float sum = 0.0f;
    for (const float x : partial) sum += x;
    out.data()[0] = sum;
  });
}

PLANT(missing_fence) {
  Output out(1);
  sum_in_last_block(false, out);
  return out.all_are(4.0f);
}

PLANT(global_read_past_end) {
  Output out(kThreads);
  std::vector<float> logits(kThreads, 1.0f);
  run_blocks(1, 0, [&] {
    // What is read by mistake does not change the result: the usual case of a masked tail.
    const float next = *static_cast<const volatile float*>(&logits[0] + thread() + 1);
    out.data()[thread()] = thread() + 1 < kThreads ? next : 1.0f;
  });
  return out.all_are(1.0f);
}

// 70,000 rows of 70,000 classes: the product needs more than 32 bits.
PLANT(index_overflow) {
  Output out(1);
  int rows = 70000, classes = 70000;
  run_blocks(1, 0, [&] {
    const int offset = rows * classes;
    if (thread() == 0) out.data()[0] = static_cast<float>(offset != 0);
  });
  return out.all_are(1.0f);
}

PLANT(null_pointer) {
  Output out(kThreads);
  const float* volatile nothing = nullptr;
  run_blocks(1, 0, [&] { out.data()[thread()] = nothing[thread()]; });
  return out.all_are(1.0f);
}

}  // namespace
}  // namespace planted
