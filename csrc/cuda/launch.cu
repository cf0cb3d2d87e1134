// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <mutex>

#include "cuda/launch.h"

namespace fastkd::cuda {

#if defined(__CUDACC__)

namespace {

// Stands for the kernels of clusters when the driver is asked what fits.
__global__ void __launch_bounds__(kRegisterThreads, 2) cluster_probe() {}

// The largest cluster of a power of two. Above 8 it takes luck: the chip's generation, and as many
// multiprocessors in one group, which a share of a GPU (MIG) may lack.
int ask_max_cluster() {
  constexpr int kLargest = 16;
  cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kLargest);
  config.blockDim = dim3(kRegisterThreads);
  int fits = 0;
  if (cudaOccupancyMaxPotentialClusterSize(&fits, cluster_probe, &config) != cudaSuccess) {
    cudaGetLastError();  // not ours to leave behind
    fits = 1;
  }
  int power = 1;
  while (2 * power <= fits && 2 * power <= kLargest) power *= 2;
  return power;
}

Chip ask_chip(int device) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    if (cudaDeviceGetAttribute(&value, which, device) != cudaSuccess) {
      cudaGetLastError();  // not ours to leave behind
      value = 0;
    }
    return value;
  };
  Chip chip;
  chip.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                    attribute(cudaDevAttrComputeCapabilityMinor);
  chip.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (attribute(cudaDevAttrClusterLaunch) != 0) {
    const Launcher current(Queue{device, nullptr});
    chip.max_cluster = ask_max_cluster();
  }
  return chip;
}

}  // namespace

Chip chip_of(int device) {
  constexpr int kDevices = 64;
  static Chip chips[kDevices];
  static std::once_flag asked[kDevices];
  if (device < 0 || device >= kDevices) return ask_chip(device);
  std::call_once(asked[device], [&] { chips[device] = ask_chip(device); });
  return chips[device];
}

Launcher::Launcher(const Queue& queue)
    : stream_(static_cast<cudaStream_t>(queue.stream)), device_(queue.device) {
  int current = -1;
  if (!check("cudaGetDevice", cudaGetDevice(&current)) || current == queue.device) return;
  if (check("cudaSetDevice", cudaSetDevice(queue.device))) device_before_ = current;
}

Launcher::~Launcher() {
  if (device_before_ >= 0) cudaSetDevice(device_before_);
}

bool Launcher::allow(const char* name, const void* kernel, const LaunchShape& shape) {
  if (shape.blocks > INT32_MAX) {
    outcome_ = {Status::kLaunchFailed, -1, name, "a grid has at most 2^31 - 1 blocks"};
    return false;
  }
  constexpr int64_t kByDefault = int64_t{48} << 10;
  // All that the chip has, whatever this launch takes: another thread may be launching it too.
  if (shape.shared_bytes > kByDefault &&
      !check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(chip_of(device_).shared_per_block)))) {
    return false;
  }
  return shape.cluster <= 8 ||
         check(name,
               cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
}

bool Launcher::check(const char* name, cudaError_t error) {
  if (error == cudaSuccess) return true;
  outcome_.status = Status::kLaunchFailed;
  outcome_.kernel = name;
  outcome_.reason = cudaGetErrorString(error);
  cudaGetLastError();  // a launch error is reported here, not by the next one to ask
  return false;
}

#else

Launcher::Launcher(const Queue&) {}
Launcher::~Launcher() = default;

#endif

}  // namespace fastkd::cuda
