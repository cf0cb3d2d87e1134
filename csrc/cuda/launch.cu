// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <mutex>

#include "cuda/launch.h"

namespace fastkd::cuda {

#if defined(__CUDACC__)

namespace {

// Blocks of a cluster may be 16 on these; the rest guarantees 8.
bool has_large_clusters(int capability) { return capability >= 90 && capability < 120; }

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
    chip.max_cluster = has_large_clusters(chip.capability) ? 16 : 8;
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

Launcher::Launcher(const Queue& queue) : stream_(static_cast<cudaStream_t>(queue.stream)) {
  int current = -1;
  if (!check("cudaGetDevice", cudaGetDevice(&current)) || current == queue.device) return;
  if (check("cudaSetDevice", cudaSetDevice(queue.device))) device_before_ = current;
}

Launcher::~Launcher() {
  if (device_before_ >= 0) cudaSetDevice(device_before_);
}

bool Launcher::allow(const char* name, const void* kernel, const LaunchShape& shape) {
  constexpr int64_t kByDefault = int64_t{48} << 10;
  if (shape.shared_bytes > kByDefault &&
      !check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shape.shared_bytes)))) {
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
