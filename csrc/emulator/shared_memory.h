// SPDX-License-Identifier: Apache-2.0
// A block's dynamic shared memory: poisoned at the start, guarded behind its end and behind every
// declared array.
#pragma once

#include <stdint.h>

#include <vector>

#include "emulator/report.h"

namespace fastkd::emulator {

// NaN in bf16, fp16, fp32 and fp64; as an integer neither 0 nor -1.
constexpr uint64_t kPoison = 0xfffafffafffafffaull;

class SharedMemory {
 public:
  // Makes room for blocks with `bytes` of shared memory.
  void reserve(int64_t bytes);
  void release();
  // Poisons everything; nothing is declared.
  void start();
  // Says what is wrong with this declaration, if anything is.
  void declare(const char* array, int64_t bytes, Text<200>& wrong);
  // Ends the block's use of the memory. Says which guard was overwritten, if one was.
  void finish(Text<200>& wrong);
  // Any access faults from now on, or no longer.
  void forbid(bool forbidden);

  char* base() const { return base_; }
  int64_t bytes() const { return bytes_; }
  bool contains(const void* pointer, int64_t bytes) const {
    const char* p = static_cast<const char*>(pointer);
    return p >= base_ && p + bytes <= base_ + bytes_;
  }
  bool maps(const void* pointer) const {
    const char* p = static_cast<const char*>(pointer);
    return p >= mapped_ && p < mapped_ + mapped_bytes_;
  }

 private:
  struct Array {
    int64_t begin, end;
  };

  char* tail() const { return base_ + bytes_; }
  int64_t tail_bytes() const;

  char* mapped_ = nullptr;
  int64_t mapped_bytes_ = 0;
  char* base_ = nullptr;
  int64_t bytes_ = 0;
  bool forbidden_ = false;
  std::vector<Array> arrays_;
};

}  // namespace fastkd::emulator
