// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "cuda/device_problem.h"
#include "cuda/launch.h"

namespace fastkd::cuda {

namespace {

__global__ void any_kernel() {}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

std::string device_problem(int device) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "there is no NVIDIA driver";
  // Minor versions of one CUDA major are compatible.
  if (driver / 1000 < runtime / 1000) {
    return "the NVIDIA driver supports CUDA " + version(driver) + ", fastkd was built with CUDA " +
           version(runtime) + ": update the driver";
  }
  const Chip chip = chip_of(device);
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, any_kernel);
  if (error == cudaSuccess) return "";
  cudaGetLastError();
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    return "this build has no code for compute capability " + std::to_string(chip.capability / 10) +
           "." + std::to_string(chip.capability % 10) +
           " (it has " FASTKD_CUDA_ARCHS "): reinstall with FASTKD_CUDA_ARCHS=" +
           std::to_string(chip.capability);
  }
  return std::string("CUDA says: ") + cudaGetErrorString(error);
}

}  // namespace fastkd::cuda
