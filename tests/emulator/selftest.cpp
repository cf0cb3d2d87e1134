// SPDX-License-Identifier: Apache-2.0
// Kernels without bugs that use everything the emulator models, in all orders, with eager and lazy
// copies. Exits with 1 if a result is wrong or a Fault is thrown. Blocks have at most 128 threads,
// for ThreadSanitizer's sake.
#include "selftest.h"

#include <stdio.h>

#include <string>

namespace selftest {

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

namespace {

int failures = 0;

void check_case(const Case& test, int order, Async async) {
  set_order(static_cast<Order>(order), 7);
  set_async(async);
  std::string wrong;
  try {
    if (!test.right()) wrong = "wrong result";
  } catch (const std::exception& exception) {
    wrong = exception.what();
  }
  if (wrong.empty()) return;
  ++failures;
  printf("%s, order %d, %s copies: %s\n", test.name, order,
         async == Async::kEager ? "eager" : "lazy", wrong.c_str());
}

}  // namespace
}  // namespace selftest

int main() {
  for (const selftest::Case& test : selftest::cases()) {
    for (int order = 0; order < 4; ++order) {
      selftest::check_case(test, order, fastkd::emulator::Async::kEager);
      selftest::check_case(test, order, fastkd::emulator::Async::kLazy);
    }
  }
  printf("%zu cases, %d failures\n", selftest::cases().size(), selftest::failures);
  return selftest::failures == 0 ? 0 : 1;
}
