// SPDX-License-Identifier: Apache-2.0
#include "backends/simulated_chip.h"

#include "cuda/launch.h"
#include "emulator/settings.h"

namespace fastkd {

namespace {

// Largest cluster and shared memory of a block: CUDA C++ Programming Guide, "Compute Capabilities".
constexpr cuda::Chip kChips[] = {
    {75, 1, int64_t{64} << 10},  {80, 1, int64_t{163} << 10},  {86, 1, int64_t{99} << 10},
    {89, 1, int64_t{99} << 10},  {90, 16, int64_t{227} << 10}, {100, 16, int64_t{227} << 10},
    {120, 8, int64_t{99} << 10},
};
cuda::Chip current = kChips[4];

}  // namespace

namespace emulator {

bool simulate_chip(int capability, int register_threads) {
  for (const cuda::Chip& chip : kChips) {
    if (chip.capability != capability) continue;
    current = chip;
    current.register_threads = register_threads;
    current.memory_threads = 2 * register_threads;
    set_chip({1024, chip.max_cluster, chip.shared_per_block});
    return true;
  }
  return false;
}

}  // namespace emulator

cuda::Chip cuda::chip_of(int) { return current; }

}  // namespace fastkd
