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

Chip chip_of(int device);

// Launches on one queue. Makes its device the current one while it lives, and keeps the first
// failure.
class Launcher {
 public:
  explicit Launcher(const Queue& queue);
  ~Launcher();
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
    config.stream = stream_;
    config.attrs = &cluster;
    config.numAttrs = shape.cluster > 1 ? 1 : 0;
    if (!allow(name, reinterpret_cast<const void*>(kernel), shape)) return;
    check(name, cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
#else
    emulator::launch(name, shape, [&] { kernel(Parameters(arguments)...); });
#endif
  }

  Outcome outcome() const { return outcome_; }

 private:
#if defined(__CUDACC__)
  // Asks for what a launch may not have by default: large shared memory, clusters above 8.
  bool allow(const char* name, const void* kernel, const LaunchShape& shape);
  bool check(const char* name, cudaError_t error);

  cudaStream_t stream_;
  int device_, device_before_ = -1;
#endif
  Outcome outcome_;
};

}  // namespace fastkd::cuda
