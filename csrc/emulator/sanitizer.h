// SPDX-License-Identifier: Apache-2.0
// What AddressSanitizer, ThreadSanitizer and valgrind must be told about fibers and shared memory.
// In a plain build every function here is empty.
//
// ThreadSanitizer must not see the emulator's own bookkeeping, which all fibers share without
// locks. So a ThreadSanitizer build compiles csrc/emulator/*.cpp with -fno-sanitize=thread
// -DFASTKD_TSAN, and everything else with -fsanitize=thread.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(FASTKD_VALGRIND)
#include <valgrind/memcheck.h>
#endif

extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
void __asan_poison_memory_region(const volatile void* begin, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* begin, size_t bytes);
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* token);
void __tsan_release(void* token);
void __tsan_read_range(const void* begin, size_t bytes);
void __tsan_write_range(void* begin, size_t bytes);
}

namespace fastkd::emulator::sanitizer {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAddress = true;
#else
constexpr bool kAddress = false;
#endif

#if defined(FASTKD_TSAN)
constexpr bool kThread = true;
#else
constexpr bool kThread = false;
#endif

constexpr unsigned kNoSync = 1;  // a switch of fibers orders nothing

// ---- memory ----

inline void poison(void* begin, int64_t bytes) {
  if constexpr (kAddress) __asan_poison_memory_region(begin, static_cast<size_t>(bytes));
#if defined(FASTKD_VALGRIND)
  VALGRIND_MAKE_MEM_NOACCESS(begin, bytes);
#endif
}

inline void unpoison(void* begin, int64_t bytes) {
  if constexpr (kAddress) __asan_unpoison_memory_region(begin, static_cast<size_t>(bytes));
#if defined(FASTKD_VALGRIND)
  VALGRIND_MAKE_MEM_DEFINED(begin, bytes);
#endif
}

// Readable, but nobody has written it.
inline void make_undefined([[maybe_unused]] void* begin, [[maybe_unused]] int64_t bytes) {
#if defined(FASTKD_VALGRIND)
  VALGRIND_MAKE_MEM_UNDEFINED(begin, bytes);
#endif
}

inline void register_stack([[maybe_unused]] char* low, [[maybe_unused]] int64_t bytes) {
#if defined(FASTKD_VALGRIND)
  (void)VALGRIND_STACK_REGISTER(low, low + bytes);
#endif
}

// By string instructions: ThreadSanitizer intercepts memset and memcpy even in code it does not
// instrument, and would take the emulator's work for the kernel's.
inline void fill_quietly(void* begin, uint64_t pattern, int64_t bytes) {
  int64_t words = bytes / 8;
  asm volatile("rep stosq" : "+D"(begin), "+c"(words) : "a"(pattern) : "memory");
  int64_t rest = bytes % 8;
  while (rest-- > 0) {
    asm volatile("stosb" : "+D"(begin) : "a"(pattern) : "memory");
    pattern >>= 8;
  }
}

// A copy that counts as the running thread's reads and writes.
inline void copy_bytes(void* to, const void* from, int64_t bytes) {
  if constexpr (kThread) {
    __tsan_read_range(from, static_cast<size_t>(bytes));
    __tsan_write_range(to, static_cast<size_t>(bytes));
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
  } else {
    memcpy(to, from, static_cast<size_t>(bytes));
  }
}

inline void note_read([[maybe_unused]] const void* begin, [[maybe_unused]] int64_t bytes) {
  if constexpr (kThread) __tsan_read_range(begin, static_cast<size_t>(bytes));
}

inline void note_write([[maybe_unused]] void* begin, [[maybe_unused]] int64_t bytes) {
  if constexpr (kThread) __tsan_write_range(begin, static_cast<size_t>(bytes));
}

// ---- order: what is released into a token happens before what acquires it later ----

// Never handed out twice within a cluster's run, so that no order leaks from one use into another.
void* fresh_token();
// Forgets all fresh tokens.
void reset_tokens();
// Orders launches, which the host awaits one by one.
void* launch_token();

inline void acquire([[maybe_unused]] void* token) {
  if constexpr (kThread) __tsan_acquire(token);
}
inline void release([[maybe_unused]] void* token) {
  if constexpr (kThread) __tsan_release(token);
}

// Who a stretch of the emulator's code counts as, for ThreadSanitizer.
class ActAs {
 public:
  explicit ActAs([[maybe_unused]] void* fiber) {
    if constexpr (kThread) {
      before_ = __tsan_get_current_fiber();
      __tsan_switch_to_fiber(fiber, kNoSync);
    }
  }
  ~ActAs() {
    if constexpr (kThread) __tsan_switch_to_fiber(before_, kNoSync);
  }
  ActAs(const ActAs&) = delete;
  ActAs& operator=(const ActAs&) = delete;

 private:
  void* before_ = nullptr;
};

}  // namespace fastkd::emulator::sanitizer
