// SPDX-License-Identifier: Apache-2.0
#include "emulator/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_THREAD__)
#error "Compile csrc/emulator/*.cpp with -fno-sanitize=thread -DFASTKD_TSAN (see sanitizer.h)."
#endif

namespace fastkd::emulator {
namespace {

constexpr int64_t kPage = 4096;
// Kernels keep tens of floats; sanitizers surround each with red zones.
constexpr int64_t kStackBytes = (sanitizer::kAddress ? 64 : 16) * kPage;
constexpr int64_t kStagger =
    9 * 64;  // cache lines; odd, so that 64 stacks differ in all their sets

}  // namespace

void allocate_stack(Fiber& fiber, int64_t index) {
  void* mapped = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapped, kPage, PROT_NONE);
  fiber.stack = static_cast<char*>(mapped) + kPage;
  fiber.stack_bytes = kStackBytes - index * kStagger % kPage / 64 * 64;
  sanitizer::register_stack(fiber.stack, fiber.stack_bytes);
}

void prepare(Fiber& fiber, void (*entry)()) {
  if constexpr (sanitizer::kAddress) sanitizer::unpoison(fiber.stack, fiber.stack_bytes);
  if constexpr (sanitizer::kThread) {
    if (fiber.race_clock != nullptr) __tsan_destroy_fiber(fiber.race_clock);
    fiber.race_clock = __tsan_create_fiber(0);
  }
  fiber.fake_stack = nullptr;
  // What switch_stack pops is where it jumps to. The entry then sees the stack as after a call.
  void** top = reinterpret_cast<void**>(
      reinterpret_cast<uintptr_t>(fiber.stack + fiber.stack_bytes - 32) & ~uintptr_t{15});
  top[0] = reinterpret_cast<void*>(entry);
  top[1] = nullptr;
  fiber.context = top;
}

void FiberPool::reserve(size_t count, void (*entry)()) {
  for (auto& set : fibers_) {
    while (set.size() < count) {
      set.emplace_back();
      allocate_stack(set.back(), static_cast<int64_t>(set.size()));
      prepare(set.back(), entry);
    }
  }
}

void FiberPool::prepare_all(void (*entry)()) {
  for (auto& set : fibers_) {
    for (Fiber& fiber : set) prepare(fiber, entry);
  }
}

void* FiberPool::copy_engine(bool odd) {
  if constexpr (!sanitizer::kThread) return nullptr;
  if (engines_[odd] == nullptr) engines_[odd] = __tsan_create_fiber(0);
  return engines_[odd];
}

void adopt_host(Fiber& host) {
  if constexpr (sanitizer::kThread) host.race_clock = __tsan_get_current_fiber();
  if constexpr (sanitizer::kAddress) {
    static thread_local void* low = nullptr;
    static thread_local size_t bytes = 0;
    if (low == nullptr) {
      pthread_attr_t attributes;
      pthread_getattr_np(pthread_self(), &attributes);
      pthread_attr_getstack(&attributes, &low, &bytes);
      pthread_attr_destroy(&attributes);
    }
    host.stack = static_cast<char*>(low);
    host.stack_bytes = static_cast<int64_t>(bytes);
  }
}

namespace sanitizer {
namespace {

constexpr int64_t kTokenBytes = int64_t{8} << 20;
char* tokens = nullptr;
int64_t used = 0;

char* map_tokens(char* where, int64_t bytes) {
  void* mapped =
      mmap(where, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (where != nullptr ? MAP_FIXED : 0), -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(mapped);
}

}  // namespace

void* fresh_token() {
  if constexpr (!kThread) return nullptr;
  void* token = tokens + used;
  used = (used + 8) % kTokenBytes;
  return token;
}

void* launch_token() {
  static uint64_t token;
  return &token;
}

void reset_tokens() {
  if constexpr (!kThread) return;
  if (tokens == nullptr) {
    tokens = map_tokens(nullptr, kTokenBytes);
  } else if (used > 0) {
    // Unmapping is what makes ThreadSanitizer forget a token.
    const int64_t bytes = (used + kPage - 1) / kPage * kPage;
    munmap(tokens, static_cast<size_t>(bytes));
    map_tokens(tokens, bytes);
  }
  used = 0;
}

}  // namespace sanitizer
}  // namespace fastkd::emulator
