// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "cuda/device_problem.h"
#include "cuda/launch.h"

namespace fastkd::cuda {

namespace {

__global__ void any_kernel() {}

// What CUDA says of a version: 1000 times the major number and 10 times the minor; 0: not there.
int ask(cudaError_t (*call)(int*)) {
  int number = 0;
  return call(&number) == cudaSuccess ? number : 0;
}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

std::string runtime_version() { return version(ask(cudaRuntimeGetVersion)); }

std::string driver_version() {
  const int driver = ask(cudaDriverGetVersion);
  return driver == 0 ? "" : version(driver);
}

std::string driver_problem() {
  const int driver = ask(cudaDriverGetVersion), runtime = ask(cudaRuntimeGetVersion);
  if (driver == 0) return "there is no NVIDIA driver";
  // Minor versions of one CUDA major are compatible.
  if (driver / 1000 >= runtime / 1000) return "";
  return "the NVIDIA driver supports CUDA " + version(driver) + ", fastkd was built with CUDA " +
         version(runtime) + ": update the driver" +
         (driver / 1000 == 12 ? ", or install fastkd-cu12 in place of fastkd" : "");
}

std::string device_problem(int device) {
  if (const std::string problem = driver_problem(); !problem.empty()) {
    return problem;
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
