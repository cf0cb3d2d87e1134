// SPDX-License-Identifier: Apache-2.0
// Indices, barriers, shared memory, clusters, atomics, and what the host is told.
#include <string>

#include "selftest.h"

namespace selftest {
namespace {

CASE(every_thread_of_every_block_runs_once) {
  for (const int64_t blocks : {1, 2, 7, 64}) {
    for (const int threads : {1, 31, 32, 33, 128}) {
      std::vector<int> runs(static_cast<size_t>(blocks * threads));
      launch("indices", {blocks, threads, 1, 0}, [&] {
        if (gridDim.x != blocks || blockDim.x != static_cast<unsigned>(threads)) return;
        ++runs[global_thread()];
      });
      if (!all_equal(runs, 1)) return false;
    }
  }
  return true;
}

__global__ void __launch_bounds__(128) sum_block(const float* values, float* sums) {
  auto* parts = reinterpret_cast<float*>(shared_memory());
  float sum = values[global_thread()];
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  if (lane() == 0) parts[warp()] = sum;
  __syncthreads();
  sum = 0.0f;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) sum += parts[i];
  sums[global_thread()] = sum;
}

CASE(block_sum_over_one_barrier) {
  std::vector<float> values(3 * 128, 0.5f), sums(3 * 128);
  launch("sum_block", {3, 128, 1, 16}, [&] { sum_block(values.data(), sums.data()); });
  return all_equal(sums, 64.0f);
}

CASE(barriers_in_loop) {
  std::vector<int> errors(64, -1);
  launch("loop", {1, 64, 1, 256}, [&] {
    auto* values = reinterpret_cast<int*>(shared_memory());
    int wrong = 0;
    for (int step = 0; step < 20; ++step) {
      values[thread()] = step + thread();
      __syncthreads();
      wrong += values[63 - thread()] != step + 63 - thread();
      __syncthreads();
    }
    errors[static_cast<size_t>(thread())] = wrong;
  });
  return all_equal(errors, 0);
}

CASE(shared_memory_starts_as_nan_in_every_format) {
  std::vector<int> bad(64);
  launch("poison", {2, 32, 1, 4096}, [&] {
    const auto* words = reinterpret_cast<const uint32_t*>(shared_memory());
    const bool aligned = reinterpret_cast<uintptr_t>(words) % 128 == 0;
#if !defined(FASTKD_VALGRIND)
    for (int i = 0; i < 1024; ++i) {
      float value;
      memcpy(&value, words + i, 4);
      const bool half_is_nan = (words[i] & 0x7c00u) == 0x7c00u && (words[i] & 0x03ffu) != 0;
      bad[global_thread()] += !(value != value) || !half_is_nan;
    }
#endif
    bad[global_thread()] += !aligned;
  });
  return all_equal(bad, 0);
}

CASE(declared_arrays_hold_what_they_should) {
  std::vector<float> sums(128);
  const int64_t bytes = 64 * 4;
  launch("declared", {2, 64, 1, 2 * (bytes + kRedZone)}, [&] {
    auto* first = static_cast<float*>(declare_shared(shared_memory(), bytes));
    void* behind = shared_memory() + bytes + kRedZone;
    auto* second = static_cast<float*>(declare_shared(declare_shared(behind, bytes), bytes));
    first[thread()] = 1.0f;
    second[63 - thread()] = 2.0f;
    __syncthreads();
    sums[global_thread()] = first[63 - thread()] + second[thread()];
  });
  return all_equal(sums, 3.0f);
}

CASE(cluster_sums_over_peers) {
  std::vector<float> sums(4 * 2 * 64);
  launch("cluster", {8, 64, 4, 16 * 4}, [&] {
    auto* parts = reinterpret_cast<float*>(shared_memory());
    arrive_cluster();
    const float mine = static_cast<float>(blockIdx.x + 1);
    wait_cluster();
    if (thread() < 4) peer_shared(parts, thread())[cluster_rank()] = mine;
    arrive_cluster();
    wait_cluster();
    sums[global_thread()] = parts[0] + parts[1] + parts[2] + parts[3];
  });
  for (size_t i = 0; i < sums.size(); ++i) {
    if (sums[i] != (i < 4 * 64 ? 10.0f : 26.0f)) return false;
  }
  return true;
}

CASE(cluster_reads_round_after_round) {
  std::vector<int> wrong(3 * 32);
  launch("rounds", {3, 32, 3, 32 * 4}, [&] {
    auto* values = reinterpret_cast<int*>(shared_memory());
    for (int round = 0; round < 5; ++round) {
      values[thread()] = round * 3 + cluster_rank();
      arrive_cluster();
      wait_cluster();
      const int next = (cluster_rank() + 1) % 3;
      wrong[global_thread()] += peer_shared(values, next)[31 - thread()] != round * 3 + next;
      arrive_cluster();
      wait_cluster();
    }
  });
  return all_equal(wrong, 0);
}

CASE(last_block_adds_up_all_others) {
  constexpr unsigned kBlocks = 6;
  std::vector<float> partial(kBlocks, -1.0f);
  float total = 0.0f;
  unsigned done = 0;
  launch("last_block", {kBlocks, 64, 1, 16}, [&] {
    auto* is_last = reinterpret_cast<int*>(shared_memory());
    if (thread() == 0) {
      partial[blockIdx.x] = static_cast<float>(blockIdx.x);
      __threadfence();
      *is_last = atomicAdd(&done, 1) == kBlocks - 1;
      __threadfence();  // by the thread whose atomic saw the others', before it tells its block
    }
    __syncthreads();
    if (*is_last == 0) return;
    if (thread() == 63) {
      for (const float x : partial) total += x;
    }
  });
  return total == 15.0f;
}

CASE(atomics) {
  int sum = 0, largest = -5;
  unsigned long long wide = 0;
  unsigned lock = 0, winners = 0;
  launch("atomics", {4, 64, 1, 0}, [&] {
    atomicAdd(&sum, 2);
    atomicAdd(&wide, 1ull << 32);
    atomicMax(&largest, thread());
    if (atomicCAS(&lock, 0, 1) == 0) atomicAdd(&winners, 1);
  });
  return sum == 512 && largest == 63 && wide == 256ull << 32 && winners == 1;
}

bool is_refused(const fastkd::LaunchShape& shape) {
  try {
    launch("refused", shape, [] {});
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

CASE(host_refuses_what_cuda_refuses) {
  const bool all = is_refused({0, 32, 1, 0}) && is_refused({1, 0, 1, 0}) &&
                   is_refused({1, 1025, 1, 0}) && is_refused({3, 32, 2, 0}) &&
                   is_refused({32, 32, 32, 0}) && is_refused({1, 32, 1, 232449}) &&
                   is_refused({int64_t{1} << 31, 32, 1, 0});
  set_chip({1024, 1, 49152});
  const bool small = is_refused({2, 32, 2, 0}) && is_refused({1, 32, 1, 49153});
  set_chip({});
  return all && small && !is_refused({2, 32, 2, 232448});
}

CASE(faults_name_kernel_block_thread_and_place_and_leave_no_trace) {
  for (int repeat = 0; repeat < 2; ++repeat) {
    std::string report;
    try {
      launch("faulty", {1, 64, 1, 16}, [&] {
        if (thread() != 40) __syncthreads();
      });
    } catch (const Fault& fault) {
      report = fault.what();
    }
    for (const char* part : {"faulty", "block 0", "thread ", "selftest_blocks.cpp:", "barrier"}) {
      if (report.find(part) == std::string::npos) return false;
    }
    if (!block_sum_over_one_barrier()) return false;
  }
  return true;
}

}  // namespace
}  // namespace selftest
