// SPDX-License-Identifier: Apache-2.0
// Shuffles, votes and warp barriers, held against loops.
#include "selftest.h"

namespace selftest {
namespace {

// What PTX ISA's shfl.sync returns, said with its own variables.
int shuffle_source(int kind, int lane, int operand, int width) {
  const int segment = 32 - width;  // bits of a lane that choose its segment
  const int max_lane = (lane & segment) | (kind == 1 ? 0 : 31 & ~segment);
  const int b = operand & 31;
  int source = 0;
  bool in_range = true;
  if (kind == 0) {
    source = (lane & segment) | (b & ~segment);
    in_range = source <= max_lane;
  } else if (kind == 1) {
    source = lane - b;
    in_range = source >= max_lane;
  } else if (kind == 2) {
    source = lane + b;
    in_range = source <= max_lane;
  } else {
    source = lane ^ b;
    in_range = source <= max_lane;
  }
  return in_range ? source : lane;
}

template <class T>
T shuffle_by_kind(int kind, T value, int operand, int width) {
  switch (kind) {
    case 0:
      return __shfl_sync(kAllLanes, value, operand, width);
    case 1:
      return __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(operand), width);
    case 2:
      return __shfl_down_sync(kAllLanes, value, static_cast<unsigned>(operand), width);
    default:
      return __shfl_xor_sync(kAllLanes, value, operand, width);
  }
}

template <class T>
bool shuffles_agree() {
  int wrong = 0;
  launch("shuffles", {1, 32, 1, 0}, [&] {
    for (int kind = 0; kind < 4; ++kind) {
      for (int width = 1; width <= 32; width *= 2) {
        for (const int operand : {0, 1, 3, 8, 16, 31}) {
          const T got = shuffle_by_kind(kind, static_cast<T>(lane() * 3), operand, width);
          const int source = shuffle_source(kind, lane(), operand, width);
          if (got != static_cast<T>(source * 3)) atomicAdd(&wrong, 1);
        }
      }
    }
  });
  return wrong == 0;
}

CASE(shuffles_of_float) { return shuffles_agree<float>(); }
CASE(shuffles_of_int) { return shuffles_agree<int>(); }
CASE(shuffles_of_double) { return shuffles_agree<double>(); }
CASE(shuffles_of_int64) { return shuffles_agree<int64_t>(); }

CASE(shuffle_of_struct) {
  std::vector<float> got(32);
  launch("struct", {1, 32, 1, 0}, [&] {
    const float2 mine = {static_cast<float>(lane()), -1.0f};
    const float2 next = __shfl_xor_sync(kAllLanes, mine, 1);
    got[threadIdx.x] = next.x + next.y - static_cast<float>(lane() ^ 1);
  });
  return all_equal(got, -1.0f);
}

// Halves of a warp, each for itself, at different places and different numbers of times.
CASE(disjoint_masks_do_not_meet) {
  std::vector<float> sums(64);
  launch("halves", {1, 64, 1, 0}, [&] {
    float sum = 1.0f;
    if (lane() < 16) {
      for (int d = 8; d > 0; d /= 2) sum += __shfl_xor_sync(0x0000ffffu, sum, d);
    } else {
      for (int d = 4; d > 0; d /= 2) sum += __shfl_xor_sync(0xffff0000u, sum, d);
      sum += __shfl_xor_sync(0xffff0000u, sum, 8);
    }
    __syncwarp();
    sum += __shfl_xor_sync(kAllLanes, sum, 16);
    sums[threadIdx.x] = sum;
  });
  return all_equal(sums, 32.0f);
}

// A lane waits first for one set of lanes and then for another, overlapping one.
CASE(overlapping_masks_in_turn) {
  std::vector<float> got(32);
  launch("overlapping", {1, 32, 1, 0}, [&] {
    float value = static_cast<float>(lane());
    if (lane() < 2) value = __shfl_sync(0x3u, value, 1);
    if (lane() >= 1 && lane() < 3) value = __shfl_sync(0x6u, value, 2);
    got[threadIdx.x] = value;
  });
  for (int i = 0; i < 32; ++i) {
    const float expected = i == 0 ? 1.0f : i == 1 ? 2.0f : static_cast<float>(i);
    if (got[static_cast<size_t>(i)] != expected) return false;
  }
  return true;
}

CASE(votes) {
  std::vector<int> wrong(32);
  launch("votes", {1, 32, 1, 0}, [&] {
    int& errors = wrong[threadIdx.x];
    errors += __ballot_sync(kAllLanes, lane() % 3 == 0) != 0x49249249u;
    errors += __any_sync(kAllLanes, lane() == 9) != 1;
    errors += __any_sync(kAllLanes, lane() == 32) != 0;
    errors += __all_sync(kAllLanes, lane() < 32) != 1;
    errors += __all_sync(kAllLanes, lane() < 31) != 0;
    if (lane() >= 24) errors += __ballot_sync(0xff000000u, lane() != 30) != 0xbf000000u;
    if (lane() >= 24) errors += __all_sync(0xff000000u, 1) != 1;
  });
  return all_equal(wrong, 0);
}

CASE(lanes_exchange_through_shared_memory) {
  std::vector<int> wrong(64);
  launch("syncwarp", {1, 64, 1, 256}, [&] {
    int* mine = reinterpret_cast<int*>(shared_memory()) + 32 * warp();
    for (int step = 0; step < 5; ++step) {
      mine[lane()] = step * 32 + lane();
      __syncwarp();
      wrong[threadIdx.x] += mine[lane() ^ 5] != step * 32 + (lane() ^ 5);
      __syncwarp();
    }
  });
  return all_equal(wrong, 0);
}

}  // namespace
}  // namespace selftest
