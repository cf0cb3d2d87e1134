// SPDX-License-Identifier: Apache-2.0
// Carves a call's workspace into arrays. The function that says how many bytes a call needs carves
// them from nowhere and asks for the sum.
#pragma once

#include <stdint.h>

namespace fastkd {

class Workspace {
 public:
  // memory == nullptr: only the size is wanted.
  explicit Workspace(void* memory) : base_(reinterpret_cast<uintptr_t>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    const uintptr_t begin = base_ + static_cast<uintptr_t>(bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
    return reinterpret_cast<T*>(begin);
  }

  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlign = 64;

  uintptr_t base_;
  int64_t bytes_ = 0;
};

}  // namespace fastkd
