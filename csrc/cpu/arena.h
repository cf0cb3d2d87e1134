// SPDX-License-Identifier: Apache-2.0
// Carves the caller's workspace into arrays; the size that is asked for is the size that is used.
#pragma once

#include <stdint.h>

namespace fastkd::cpu {

class Arena {
 public:
  // base == nullptr: only the size is wanted.
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t begin = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + begin);
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace fastkd::cpu
