// SPDX-License-Identifier: Apache-2.0
// Turns a memory access that the hardware refuses into a Fault.
#pragma once

#include <signal.h>

namespace fastkd::emulator {

// Handles SIGSEGV while it lives. One at a time.
class CrashHandler {
 public:
  CrashHandler();
  ~CrashHandler();
  CrashHandler(const CrashHandler&) = delete;
  CrashHandler& operator=(const CrashHandler&) = delete;

 private:
  stack_t stack_;  // as it was
};

}  // namespace fastkd::emulator
