// SPDX-License-Identifier: Apache-2.0
// Settings, and what CUDA checks before a launch.
#include "emulator/launch.h"

#include <mutex>
#include <utility>

#include "emulator/crash.h"
#include "emulator/machine.h"

namespace fastkd::emulator {
namespace {

std::mutex one_launch;
std::vector<std::string> launches;

void refuse(const char* name, const std::string& why) {
  throw std::invalid_argument("kernel " + std::string(name) + " cannot be launched: " + why);
}

void check(const char* name, const LaunchShape& shape, const Chip& chip) {
  const auto within = [&](int64_t value, int64_t low, int64_t high, const char* what) {
    if (value >= low && value <= high) return;
    refuse(name, std::to_string(value) + " " + what + ", not " + std::to_string(low) + " to " +
                     std::to_string(high));
  };
  within(shape.blocks, 1, INT32_MAX, "blocks");
  within(shape.threads, 1, chip.threads, "threads a block");
  within(shape.cluster, 1, chip.cluster, "blocks a cluster");
  within(shape.shared_bytes, 0, chip.shared_bytes, "bytes of shared memory");
  if (shape.blocks % shape.cluster != 0) {
    refuse(name, std::to_string(shape.blocks) + " blocks in clusters of " +
                     std::to_string(shape.cluster));
  }
}

}  // namespace

void set_order(Order order, uint64_t seed) {
  const std::lock_guard lock(one_launch);
  machine.order = order;
  // Never 0, where xorshift stays; the factor spreads small seeds (2^64 over the golden ratio).
  machine.random_state = (seed * 2 + 1) * 0x9e3779b97f4a7c15ull;
}

void set_async(Async async) {
  const std::lock_guard lock(one_launch);
  machine.async = async;
}

void set_chip(const Chip& chip) {
  const std::lock_guard lock(one_launch);
  machine.chip = chip;
}

std::vector<std::string> take_launches() {
  const std::lock_guard lock(one_launch);
  return std::exchange(launches, {});
}

bool run(const char* name, const LaunchShape& shape, void (*call)(const void*), const void* body) {
  const std::lock_guard lock(one_launch);
  check(name, shape, machine.chip);
  if (shape.cluster > machine.chip.room) return false;
  launches.emplace_back(name);
  machine.kernel = name;
  machine.shape = shape;
  machine.call = call;
  machine.body = body;
  std::string report;
  {
    const CrashHandler handler;
    report = machine.run_launch();
  }
  if (!report.empty()) throw Fault(report);
  return true;
}

}  // namespace fastkd::emulator
