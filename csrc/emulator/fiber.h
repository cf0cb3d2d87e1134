// SPDX-License-Identifier: Apache-2.0
// Fibers: stacks of their own on one OS thread, and the switch between them.
#pragma once

#include <deque>

#include "emulator/sanitizer.h"

#if !defined(__x86_64__) || !defined(__linux__)
#error "The emulator's fibers are written for x86-64 Linux."
#endif

namespace fastkd::emulator {

struct Fiber {
  void* context = nullptr;  // its stack pointer while it does not run
  char* stack = nullptr;    // lowest address
  int64_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* race_clock = nullptr;  // ThreadSanitizer's fiber
};

// Gives the empty `fiber` a stack, with an inaccessible page below it. `index` staggers the stacks,
// which would all fall into the same cache sets otherwise.
void allocate_stack(Fiber& fiber, int64_t index);
// The next switch to `fiber` calls entry(), which never returns. Whatever it ran is forgotten.
void prepare(Fiber& fiber, void (*entry)());

// What must follow every arrival on a fiber.
inline void after_switch(Fiber& self) {
  if constexpr (sanitizer::kAddress) {
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
  }
}

// Saves only rbp and rsp: everything else is declared clobbered, so the compiler saves what it
// needs. A jump instead of call and ret keeps the CPU's return predictor right, because fibers
// mostly wait at the same place with the same callers.
inline void switch_stack(void** save, void* load) {
  asm volatile(
      "leaq -128(%%rsp), %%rsp\n\t"  // the red zone of a leaf function
      "pushq %%rbp\n\t"
      "leaq 1f(%%rip), %%rax\n\t"
      "pushq %%rax\n\t"
      "movq %%rsp, (%%rdi)\n\t"
      "movq %%rsi, %%rsp\n\t"
      "popq %%rax\n\t"
      "jmpq *%%rax\n"
      "1:\n\t"
      "popq %%rbp\n\t"
      "leaq 128(%%rsp), %%rsp\n\t"
      : "+D"(save), "+S"(load)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",
        "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13", "xmm14", "xmm15",
#if defined(__AVX512F__)
        "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",
        "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6",
        "k7",
#endif
        "cc", "memory");
}

inline void switch_fiber(Fiber& from, Fiber& to) {
  if constexpr (sanitizer::kAddress) {
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, static_cast<size_t>(to.stack_bytes));
  }
  if constexpr (sanitizer::kThread) __tsan_switch_to_fiber(to.race_clock, sanitizer::kNoSync);
  switch_stack(&from.context, to.context);
  after_switch(from);
}

// Fibers for the threads that run at one time, kept from launch to launch.
//
// ThreadSanitizer takes what a fiber does in one block as ordered before what it does in the next.
// So in its build blocks that follow each other run on two sets of fibers in turn.
class FiberPool {
 public:
  void reserve(size_t count, void (*entry)());
  void prepare_all(void (*entry)());
  Fiber* get(size_t index, bool odd) { return &fibers_[kSets == 2 && odd][index]; }
  void* copy_engine(bool odd);

 private:
  static constexpr size_t kSets = sanitizer::kThread ? 2 : 1;
  std::deque<Fiber> fibers_[kSets];
  void* engines_[2] = {};
};

// Makes `host` stand for the OS thread that calls this.
void adopt_host(Fiber& host);

}  // namespace fastkd::emulator
