// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <mutex>

#include "cuda/launch.h"

#if defined(__CUDACC__)

namespace fastkd::cuda {

namespace {

constexpr int kLargestCluster = 16;

// Stands for the kernels of clusters when the driver is asked what fits.
__global__ void __launch_bounds__(kMemoryThreads) cluster_probe() {}

bool succeeds(cudaError_t error) {
  if (error == cudaSuccess) return true;
  cudaGetLastError();  // not ours to leave behind
  return false;
}

int attribute(int device, cudaDeviceAttr which) {
  int value = 0;
  return succeeds(cudaDeviceGetAttribute(&value, which, device)) ? value : 0;
}

// The largest cluster, a power of two, of which the chip has room for one. Above 8 it takes luck:
// the chip's generation, and as many multiprocessors in one group, which a share of a GPU (MIG) or
// a chip with faults may lack.
int largest_cluster(int threads, int shared_bytes) {
  if (!succeeds(
          cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) ||
      !succeeds(cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     shared_bytes))) {
    return 1;
  }
  cudaLaunchAttribute dimension{};
  dimension.id = cudaLaunchAttributeClusterDimension;
  dimension.val.clusterDim.y = dimension.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &dimension;
  config.numAttrs = 1;
  int largest = 1;
  for (int cluster = 2; cluster <= kLargestCluster; cluster *= 2) {
    dimension.val.clusterDim.x = static_cast<unsigned>(cluster);
    config.gridDim = dim3(static_cast<unsigned>(cluster));
    int clusters = 0;
    if (!succeeds(cudaOccupancyMaxActiveClusters(&clusters, cluster_probe, &config))) break;
    if (clusters == 0) break;
    largest = cluster;
  }
  return largest;
}

Chip ask_chip(int device) {
  Chip chip;
  chip.capability = 10 * attribute(device, cudaDevAttrComputeCapabilityMajor) +
                    attribute(device, cudaDevAttrComputeCapabilityMinor);
  chip.shared_per_block = attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  chip.multiprocessors = std::max(1, attribute(device, cudaDevAttrMultiProcessorCount));
  if (attribute(device, cudaDevAttrClusterLaunch) != 0) {
    // Registers let two blocks of kCluster on a multiprocessor; so does half of its shared memory.
    const int half = attribute(device, cudaDevAttrMaxSharedMemoryPerMultiprocessor) / 2 -
                     attribute(device, cudaDevAttrReservedSharedMemoryPerBlock);
    chip.max_cluster = largest_cluster(kRegisterThreads, half);
    chip.max_shared_cluster =
        largest_cluster(kMemoryThreads, static_cast<int>(chip.shared_per_block));
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

bool Launcher::allow(const char* name, const void* kernel, const LaunchShape& shape) {
  if (shape.blocks > INT32_MAX) {
    outcome_ = {Status::kLaunchFailed, -1, name, "a grid has at most 2^31 - 1 blocks"};
    return false;
  }
  int current = -1;
  if (!check(name, shape, cudaGetDevice(&current))) return false;
  if (current != queue_.device) {
    outcome_ = {Status::kLaunchFailed, -1, name, "another device is current"};
    return false;
  }
  constexpr int64_t kByDefault = int64_t{48} << 10;
  // All that the chip has, whatever this launch takes: another thread may be launching it too.
  const int most = static_cast<int>(chip_of(queue_.device).shared_per_block);
  if (shape.shared_bytes > kByDefault &&
      !check(name, shape,
             cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most))) {
    return false;
  }
  return shape.cluster <= 8 ||
         check(name, shape,
               cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
}

bool Launcher::check(const char* name, const LaunchShape& shape, cudaError_t error) {
  if (error == cudaSuccess) return true;
  const bool no_room =
      error == cudaErrorInvalidClusterSize || error == cudaErrorLaunchOutOfResources;
  outcome_.status =
      shape.cluster > 1 && no_room ? Status::kNoRoomForClusters : Status::kLaunchFailed;
  outcome_.kernel = name;
  outcome_.reason = cudaGetErrorString(error);
  cudaGetLastError();  // a launch error is reported here, not by the next one to ask
  return false;
}

}  // namespace fastkd::cuda

#endif
