// SPDX-License-Identifier: Apache-2.0
// From the host to the device: the chip, the current device, a launch, and what went wrong.
#pragma once

#include "core/launch_shape.h"
#include "cuda/plan.h"
#include "kernels.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "emulator/launch.h"
#endif

namespace fastkd::cuda {

// Asked at the first call, with the device current; Python asks before the first kernel, so never
// while a graph is captured.
Chip chip_of(int device);

// Launches on one queue, whose device is current, and keeps the first failure.
class Launcher {
 public:
  explicit Launcher(const Queue& queue) : queue_(queue) {}
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  // `name` and the kernel's own parameters; blocks == 0 launches nothing.
  template <class... Parameters, class... Arguments>
  void operator()(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape,
                  const Arguments&... arguments) {
    if (shape.blocks == 0 || outcome_.status != Status::kOk) return;
#if defined(__CUDACC__)
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
    config.stream = static_cast<cudaStream_t>(queue_.stream);
    config.attrs = &cluster;
    config.numAttrs = shape.cluster > 1 ? 1 : 0;
    if (!allow(name, reinterpret_cast<const void*>(kernel), shape)) return;
    check(name, shape, cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
#else
    if (!emulator::launch(name, shape, [&] { kernel(Parameters(arguments)...); })) {
      outcome_ = {Status::kNoRoomForClusters, -1, name, "there is no room for its clusters"};
    }
#endif
  }

  Outcome outcome() const { return outcome_; }

 private:
#if defined(__CUDACC__)
  // Asks for what a launch may not have by default: large shared memory, clusters above 8.
  bool allow(const char* name, const void* kernel, const LaunchShape& shape);
  bool check(const char* name, const LaunchShape& shape, cudaError_t error);
#endif

  Queue queue_;
  Outcome outcome_;
};

}  // namespace fastkd::cuda
