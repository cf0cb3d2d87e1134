// SPDX-License-Identifier: Apache-2.0
// Kernels with one bug each, to see which job of the emulator finds it.
#pragma once

#include <math.h>

#include <vector>

#include "emulator/cuda.h"
#include "emulator/launch.h"

namespace planted {

using namespace fastkd::emulator;

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kThreads = 64;  // of a block: two warps

struct Bug {
  const char* name;
  bool (*right)();  // runs the kernel; false: its result is wrong
};

// All bugs, in the order of their definition.
std::vector<Bug>& bugs();

// Defines the bug `name`; the body follows.
#define PLANT(name)                                                        \
  bool name();                                                             \
  const bool name##_is_planted = (bugs().push_back({#name, &name}), true); \
  bool name()

// A kernel's results, and what one thread has to say.
struct Output {
  std::vector<float> values;
  explicit Output(int64_t count) : values(static_cast<size_t>(count), -1.0f) {}
  float* data() { return values.data(); }
  bool all_are(float expected) const {
    for (const float value : values) {
      if (!(value == expected)) return false;
    }
    return true;
  }
};

template <class Body>
void run_blocks(int64_t blocks, int64_t shared_bytes, const Body& body) {
  launch("planted", {blocks, kThreads, 1, shared_bytes}, body);
}

template <class Body>
void run_pair(int64_t shared_bytes, const Body& body) {  // a cluster of two blocks
  launch("planted", {2, kThreads, 2, shared_bytes}, body);
}

inline int thread() { return static_cast<int>(threadIdx.x); }
inline int lane() { return static_cast<int>(threadIdx.x) % 32; }
inline int warp() { return static_cast<int>(threadIdx.x) / 32; }

template <class T>
T* shared_at(int64_t offset) {
  return reinterpret_cast<T*>(shared_memory() + offset);
}

}  // namespace planted
