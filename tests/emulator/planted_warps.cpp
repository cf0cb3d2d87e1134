// SPDX-License-Identifier: Apache-2.0
// Bugs of divergence: threads that do not meet where others wait, and wrong shuffles.
#include "planted.h"

namespace planted {
namespace {

PLANT(barrier_in_branch) {
  Output out(kThreads);
  run_blocks(1, 0, [&] {
    if (warp() == 0) __syncthreads();
    out.data()[thread()] = 1.0f;
  });
  return out.all_are(1.0f);
}

PLANT(barrier_in_both_branches) {
  Output out(kThreads);
  run_blocks(1, 0, [&] {
    if (warp() == 0) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    out.data()[thread()] = 1.0f;
  });
  return out.all_are(1.0f);
}

PLANT(early_return_before_barrier) {
  Output out(kThreads);
  run_blocks(1, 0, [&] {
    out.data()[thread()] = 1.0f;
    if (thread() == kThreads - 1) return;
    __syncthreads();
  });
  return out.all_are(1.0f);
}

PLANT(unequal_numbers_of_barriers) {
  Output out(kThreads);
  run_blocks(1, 0, [&] {
    for (int i = 0; i < 2 + warp(); ++i) __syncthreads();
    out.data()[thread()] = 1.0f;
  });
  return out.all_are(1.0f);
}

PLANT(barrier_meets_shuffle) {
  Output out(kThreads);
  run_blocks(1, 0, [&] {
    float value = 1.0f;
    if (lane() < 16) value = __shfl_xor_sync(kAllLanes, value, 16);
    __syncthreads();
    out.data()[thread()] = value;
  });
  return out.all_are(1.0f);
}

PLANT(shuffle_in_branch) {
  Output out(kThreads);
  run_blocks(1, 0, [&] {
    float value = 1.0f;
    if (lane() < 16) value = __shfl_xor_sync(kAllLanes, value, 1);
    out.data()[thread()] = value;
  });
  return out.all_are(1.0f);
}

PLANT(shuffle_in_both_branches) {
  Output out(kThreads);
  run_blocks(1, 0, [&] {
    float value = 1.0f;
    if (lane() < 16) {
      value = __shfl_xor_sync(kAllLanes, value, 1);
    } else {
      value = __shfl_xor_sync(kAllLanes, value, 2);
    }
    out.data()[thread()] = value;
  });
  return out.all_are(1.0f);
}

PLANT(shuffle_mask_without_caller) {
  Output out(kThreads);
  run_blocks(1, 0, [&] { out.data()[thread()] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1); });
  return out.all_are(1.0f);
}

PLANT(shuffle_reads_outside_mask) {
  Output out(kThreads);
  run_blocks(1, 0, [&] {
    float value = 1.0f;
    if (lane() < 16) value = __shfl_sync(0x0000ffffu, value, lane() + 1);
    out.data()[thread()] = value;
  });
  return out.all_are(1.0f);
}

PLANT(shuffle_of_wrong_width) {
  Output out(kThreads);
  run_blocks(1, 0, [&] {
    float sum = static_cast<float>(lane());
    for (int distance = 16; distance > 0; distance /= 2) {
      sum += __shfl_down_sync(kAllLanes, sum, static_cast<unsigned>(distance), 16);
    }
    out.data()[thread()] = __shfl_sync(kAllLanes, sum, 0);
  });
  return out.all_are(31.0f * 16.0f);
}

PLANT(shuffle_without_last_step) {
  Output out(kThreads);
  run_blocks(1, 0, [&] {
    float sum = static_cast<float>(lane());
    for (int distance = 16; distance > 1; distance /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
    }
    out.data()[thread()] = sum;
  });
  return out.all_are(31.0f * 16.0f);
}

}  // namespace
}  // namespace planted
