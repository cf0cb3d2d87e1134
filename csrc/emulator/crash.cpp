// SPDX-License-Identifier: Apache-2.0
#include "emulator/crash.h"

#include <ucontext.h>

#include "emulator/machine.h"

namespace fastkd::emulator {
namespace {

// A fiber whose stack has overflowed cannot run the handler on it.
alignas(16) char handler_stack[64 * 1024];
uintptr_t refused = 0;
struct sigaction before;  // of SIGSEGV

// Nothing for memory that the emulator does not know.
Text<200> explain(uintptr_t address) {
  Text<200> text;
  const void* pointer = reinterpret_cast<const void*>(address);
  for (const Block& block : machine.blocks) {
    if (!block.shared.maps(pointer)) continue;
    const int64_t offset = static_cast<const char*>(pointer) - block.shared.base();
    const char* why = block.alive == 0 ? "which has exited" : "which has not started";
    if (offset >= block.shared.bytes()) why = "beyond its end";
    text.print("byte %ld of the shared memory of block %ld, %s", offset, block.index, why);
    return text;
  }
  const Fiber& fiber = *machine.current->fiber;
  const auto below_stack = reinterpret_cast<uintptr_t>(fiber.stack) - address;
  if (below_stack > 0 && below_stack <= 4096) text.print("memory below the overflowing stack");
  return text;
}

// Runs on the fiber, at the top of its stack: what was there is lost anyway.
void report() {
  const Thread& self = *machine.current;
  Text<200> what = explain(refused);
  if (what.length == 0) what.print("address 0x%lx, where there is no memory", refused);
  fault(self.warp->site[self.lane], "access to %s (the place is the thread's last wait)",
        what.chars);
}

void handle(int signal, siginfo_t* info, void* context) {
  refused = reinterpret_cast<uintptr_t>(info->si_addr);
  // What is not the kernel's doing, and what AddressSanitizer explains better, happens again under
  // the handler that was there before.
  if (machine.current == nullptr || (sanitizer::kAddress && explain(refused).length == 0)) {
    sigaction(signal, &before, nullptr);
    return;
  }
  const Fiber& fiber = *machine.current->fiber;
  if constexpr (sanitizer::kAddress) sanitizer::unpoison(fiber.stack, fiber.stack_bytes);
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto top = reinterpret_cast<uintptr_t>(fiber.stack + fiber.stack_bytes - 32);
  registers[REG_RSP] = static_cast<greg_t>((top & ~uintptr_t{15}) - 8);  // as after a call
  registers[REG_RIP] = static_cast<greg_t>(reinterpret_cast<uintptr_t>(&report));
}

}  // namespace

CrashHandler::CrashHandler() {
  const stack_t mine = {handler_stack, 0, sizeof(handler_stack)};
  sigaltstack(&mine, &stack_);
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &before);
}

CrashHandler::~CrashHandler() {
  sigaction(SIGSEGV, &before, nullptr);
  sigaltstack(&stack_, nullptr);
}

}  // namespace fastkd::emulator
