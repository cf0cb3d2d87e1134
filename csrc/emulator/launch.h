// SPDX-License-Identifier: Apache-2.0
// The host's side: runs a kernel on the emulator.
#pragma once

#include <string>
#include <vector>

#include "core/launch_shape.h"
#include "emulator/settings.h"

namespace fastkd::emulator {

// Runs call(body) as every thread of every block. Throws std::invalid_argument where CUDA would
// refuse the launch on every such chip, and Fault when the kernel misbehaves. False: this chip has
// no room for the clusters.
bool run(const char* name, const LaunchShape& shape, void (*call)(const void*), const void* body);

// `body()` calls the kernel with its arguments; `name` appears in reports.
template <class Kernel>
bool launch(const char* name, const LaunchShape& shape, const Kernel& body) {
  return run(
      name, shape, [](const void* kernel) { (*static_cast<const Kernel*>(kernel))(); }, &body);
}

// The names of the kernels launched since the last call.
std::vector<std::string> take_launches();

}  // namespace fastkd::emulator
