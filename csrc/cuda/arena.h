// SPDX-License-Identifier: Apache-2.0
// Carves the dynamic shared memory of a block into arrays. Host and device carve alike, so the size
// that a launch asks for is the size that its kernel uses.
#pragma once

#include "cuda/device.h"

namespace fastkd::cuda {

class Arena {
 public:
  // base == nullptr: only the size is wanted.
  __host__ __device__ __forceinline__ explicit Arena(char* base) : base_(base) {}

  template <class T>
  __host__ __device__ __forceinline__ T* take(int64_t count) {
    const int64_t begin = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
#if !defined(__CUDACC__)
    if (base_ != nullptr) {
      emulator::declare_shared(base_ + begin, count * static_cast<int64_t>(sizeof(T)));
    }
    bytes_ += emulator::kRedZone;
#endif
    return reinterpret_cast<T*>(base_ + begin);
  }

  __host__ __device__ __forceinline__ int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace fastkd::cuda
