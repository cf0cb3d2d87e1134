// SPDX-License-Identifier: Apache-2.0
#include "backends/simulated_chip.h"

#include "cuda/launch.h"
#include "emulator/settings.h"

namespace fastkd {

namespace {

// Largest cluster and shared memory of a block: CUDA C++ Programming Guide, "Compute Capabilities".
// One multiprocessor, so that a block of a striding grid has several pieces to do.
constexpr cuda::Chip chip(int capability, int max_cluster, int kilobytes) {
  return {capability, max_cluster, max_cluster, int64_t{kilobytes} << 10, 1};
}
constexpr cuda::Chip kChips[] = {
    chip(75, 1, 64),   chip(80, 1, 163),   chip(86, 1, 99),  chip(89, 1, 99),
    chip(90, 16, 227), chip(100, 16, 227), chip(120, 8, 99),
};
cuda::Chip current = kChips[4];

}  // namespace

namespace emulator {

bool simulate_chip(int capability, int register_threads, int room) {
  for (const cuda::Chip& chip : kChips) {
    if (chip.capability != capability) continue;
    current = chip;
    current.register_threads = register_threads;
    current.memory_threads = 2 * register_threads;
    set_chip({1024, chip.max_cluster, chip.shared_per_block, room});
    return true;
  }
  return false;
}

}  // namespace emulator

cuda::Chip cuda::chip_of(int) { return current; }

}  // namespace fastkd
