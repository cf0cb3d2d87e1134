// SPDX-License-Identifier: Apache-2.0
// What a test program on a GPU needs: device memory, and one line for each thing checked.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace fastkd::cuda {

inline int failures = 0;

inline void report(const char* what, bool right, const char* detail = "") {
  std::printf("%-44s %s%s%s\n", what, right ? "ok" : "FAILED", *detail ? ": " : "", detail);
  std::fflush(stdout);  // the next check may hang
  failures += !right;
}

// After a fault every further call fails too: say where it began, and end.
inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  report(what, false, cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    require(cudaMalloc(&data_, count * sizeof(T)), "cudaMalloc");
    require(cudaMemset(data_, 0xa5, count * sizeof(T)), "cudaMemset");
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    const size_t bytes = count_ * sizeof(T);
    require(cudaMemcpy(data_, values.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }

  // Waits for the kernels before.
  std::vector<T> read(const char* what) const {
    std::vector<T> values(count_);
    require(cudaGetLastError(), what);
    require(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), what);
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

}  // namespace fastkd::cuda
