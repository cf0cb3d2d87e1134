// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <math.h>

#include <vector>

#include "emulator/cuda.h"
#include "emulator/launch.h"

namespace selftest {

using namespace fastkd::emulator;

constexpr uint32_t kAllLanes = 0xffffffffu;

struct Case {
  const char* name;
  bool (*right)();
};

std::vector<Case>& cases();

// Defines the case `name`, which returns whether its results are right; the body follows.
#define CASE(name)                                                         \
  bool name();                                                             \
  const bool name##_is_listed = (cases().push_back({#name, &name}), true); \
  bool name()

inline int thread() { return static_cast<int>(threadIdx.x); }
inline int lane() { return static_cast<int>(threadIdx.x) % 32; }
inline int warp() { return static_cast<int>(threadIdx.x) / 32; }
inline size_t global_thread() { return size_t{blockIdx.x} * blockDim.x + threadIdx.x; }

template <class T>
bool all_equal(const std::vector<T>& values, T expected) {
  for (const T& value : values) {
    if (!(value == expected)) return false;
  }
  return true;
}

}  // namespace selftest
