// SPDX-License-Identifier: Apache-2.0
#include "emulator/shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "emulator/device_calls.h"
#include "emulator/sanitizer.h"

namespace fastkd::emulator {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kBase = 128;  // what shared memory is aligned to, and no more; guarded too
constexpr int64_t kTail = 256;  // guarded bytes behind the last one, before an inaccessible page
constexpr uint64_t kGuard = 0xfff5fff5fff5fff5ull;

// The first byte of [begin, begin + bytes) that is no longer as fill_quietly left it, or -1.
int64_t find_damage(const char* begin, int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i) {
    if (static_cast<uint8_t>(begin[i]) != static_cast<uint8_t>(kGuard >> (i % 8 * 8))) return i;
  }
  return -1;
}

char* map(char* where, int64_t bytes) {
  void* mapped = mmap(where, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | (where != nullptr ? MAP_FIXED : 0), -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(mapped);
}

}  // namespace

int64_t SharedMemory::tail_bytes() const { return mapped_ + mapped_bytes_ - kPage - tail(); }

void SharedMemory::reserve(int64_t bytes) {
  if (mapped_ != nullptr && bytes == bytes_) return;
  release();
  bytes_ = bytes;
  mapped_bytes_ = (kBase + bytes + kTail + kPage - 1) / kPage * kPage + kPage;
  mapped_ = map(nullptr, mapped_bytes_);
  mprotect(mapped_ + mapped_bytes_ - kPage, kPage, PROT_NONE);
  base_ = mapped_ + kBase;
  arrays_.reserve(64);
}

void SharedMemory::release() {
  if (mapped_ == nullptr) return;
  sanitizer::unpoison(mapped_, mapped_bytes_ - kPage);
  munmap(mapped_, static_cast<size_t>(mapped_bytes_));
  mapped_ = nullptr;
}

void SharedMemory::start() {
  if constexpr (sanitizer::kThread) {
    // A fresh mapping has no history: accesses of other blocks at these addresses are no races.
    munmap(mapped_, static_cast<size_t>(mapped_bytes_ - kPage));
    map(mapped_, mapped_bytes_ - kPage);
  }
  arrays_.clear();
  sanitizer::fill_quietly(base_, kPoison, bytes_);
  sanitizer::make_undefined(base_, bytes_);
  sanitizer::fill_quietly(mapped_, kGuard, kBase);
  sanitizer::poison(mapped_, kBase);
  sanitizer::fill_quietly(tail(), kGuard, tail_bytes());
  sanitizer::poison(tail(), tail_bytes());
}

void SharedMemory::declare(const char* array, int64_t bytes, Text<200>& wrong) {
  const int64_t begin = array - base_, end = begin + bytes;
  for (const Array& known : arrays_) {
    if (known.begin == begin && known.end == end) return;
  }
  if (begin < 0 || bytes < 0 || end + kRedZone > bytes_) {
    return wrong.print("an array at bytes %ld to %ld and its red zone do not fit into %ld bytes",
                       begin, end, bytes_);
  }
  for (const Array& known : arrays_) {
    if (begin >= known.end + kRedZone || known.begin >= end + kRedZone) continue;
    return wrong.print("arrays overlap in shared memory: bytes %ld to %ld and %ld to %ld", begin,
                       end, known.begin, known.end);
  }
  arrays_.push_back({begin, end});
  sanitizer::fill_quietly(base_ + end, kGuard, kRedZone);
  sanitizer::poison(base_ + end, kRedZone);
}

void SharedMemory::finish(Text<200>& wrong) {
  forbid(false);
  sanitizer::unpoison(mapped_, mapped_bytes_ - kPage);
  for (const Array& array : arrays_) {
    const int64_t where = find_damage(base_ + array.end, kRedZone);
    if (where < 0) continue;
    return wrong.print(
        "shared memory overrun: wrote %ld bytes behind the array at bytes %ld to %ld", where,
        array.begin, array.end);
  }
  if (find_damage(mapped_, kBase) >= 0) {
    return wrong.print("shared memory overrun: wrote before its first byte");
  }
  const int64_t where = find_damage(tail(), std::min(tail_bytes(), kTail));
  if (where < 0) return;
  wrong.print("shared memory overrun: wrote %ld bytes behind the last of %ld", where, bytes_);
}

void SharedMemory::forbid(bool forbidden) {
  if (forbidden == forbidden_) return;
  forbidden_ = forbidden;
  mprotect(mapped_, static_cast<size_t>(mapped_bytes_ - kPage),
           forbidden ? PROT_NONE : PROT_READ | PROT_WRITE);
}

}  // namespace fastkd::emulator
