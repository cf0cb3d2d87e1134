// SPDX-License-Identifier: Apache-2.0
// planted --list          the names of all bugs
// planted NAME            runs one in all orders and both kinds of copies; says who found it, and
//                         how. Exits with 1 if anybody did.
// planted --ignore NAME   the same, but only a sanitizer's own report counts
// planted --valgrind      runs all, and names those for which valgrind reports errors
#include "planted.h"

#include <stdio.h>
#include <string.h>

#include <string>

#if defined(FASTKD_VALGRIND)
#include <valgrind/memcheck.h>
#endif

namespace planted {

std::vector<Bug>& bugs() {
  static std::vector<Bug> all;
  return all;
}

namespace {

constexpr const char* kOrders[] = {"round_robin", "greedy", "reversed", "random"};

// "" or what is seen of the bug: the kind of a fault, or "wrong result".
std::string look(const Bug& bug) {
  try {
    return bug.right() ? "" : "wrong result";
  } catch (const Fault& fault) {
    const std::string text = fault.what();
    fprintf(stderr, "%s\n", text.c_str());
    return "fault";
  }
}

// The orders in which it is seen, separated by spaces.
std::string look_in_all_orders(const Bug& bug, Async async, std::string& how) {
  std::string seen;
  set_async(async);
  for (int i = 0; i < 4; ++i) {
    set_order(static_cast<Order>(i), 1);
    const std::string what = look(bug);
    if (what.empty()) continue;
    seen += (seen.empty() ? "" : " ") + std::string(kOrders[i]);
    if (how.find(what) == std::string::npos) how += (how.empty() ? "" : ", ") + what;
  }
  return seen.empty() ? "none" : seen;
}

std::string report(const Bug& bug) {
  std::string how;
  const std::string eager = look_in_all_orders(bug, Async::kEager, how);
  const std::string lazy = look_in_all_orders(bug, Async::kLazy, how);
  if (how.empty()) return "";
  return how + " in " + (eager == lazy ? eager : "eager " + eager + "; lazy " + lazy);
}

int run_under_valgrind() {
#if defined(FASTKD_VALGRIND)
  for (const Bug& bug : bugs()) {
    const auto before = VALGRIND_COUNT_ERRORS;
    report(bug);
    if (VALGRIND_COUNT_ERRORS > before) printf("%s\n", bug.name);
  }
  return 0;
#else
  return 2;
#endif
}

int run(const char* name, bool ignore) {
  for (const Bug& bug : bugs()) {
    if (strcmp(bug.name, name) != 0) continue;
    const std::string seen = report(bug);
    if (ignore || seen.empty()) return 0;
    printf("%s\n", seen.c_str());
    return 1;
  }
  fprintf(stderr, "planted: no bug is called %s\n", name);
  return 2;
}

}  // namespace
}  // namespace planted

int main(int count, char** arguments) {
  const std::string first = count > 1 ? arguments[1] : "--list";
  if (first == "--list") {
    for (const planted::Bug& bug : planted::bugs()) printf("%s\n", bug.name);
    return 0;
  }
  if (first == "--valgrind") return planted::run_under_valgrind();
  if (first == "--ignore" && count > 2) return planted::run(arguments[2], true);
  return planted::run(first.c_str(), false);
}
