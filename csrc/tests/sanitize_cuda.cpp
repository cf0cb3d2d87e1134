// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels on the emulator under sanitizers and valgrind. Blocks are simulated small, so
// that clusters of 16 stay within what ThreadSanitizer can follow.
//
//   sanitize_cuda all     every option, type and shape, on two chips in four orders each
//   sanitize_cuda         likewise, in two of the orders on each chip
//   sanitize_cuda brief   some, for tools that slow everything down fifty times
#include <string.h>

#include "backends/simulated_chip.h"
#include "emulator/settings.h"
#include "tests/attention_check.h"
#include "tests/kernel_check.h"
#include "tests/pair_check.h"
#include "tests/topk_check.h"

namespace fastkd {
namespace {

using emulator::Async;
using emulator::Order;

constexpr int kRegisterThreads = 32;  // 1024 classes a block

// Rows within a warp, a block, clusters of 2 and 16, rows in shared memory (streamed on a chip
// without clusters), columns in registers and streamed; aligned, odd and sliced.
constexpr check::Shape kShapes[] = {
    {1, 1, 1, false, 0},    {3, 10, 5, false, 0},    {1, 64, 3, false, 0},
    {1, 77, 4, false, 3},   {2, 300, 2, false, 0},   {1, 1000, 3, false, 0},
    {1, 1024, 2, false, 1}, {1, 2000, 2, false, 0},  {1, 2047, 2, false, 0},
    {1, 9001, 2, false, 3}, {1, 17000, 1, false, 0}, {1, 17003, 2, false, 2},
    {2, 10, 8, true, 0},    {1, 19, 33, true, 1},    {1, 60, 12, true, 0},
};
constexpr check::Shape kFewShapes[] = {
    {3, 10, 5, false, 0},   {1, 300, 3, false, 1},  {1, 1000, 2, false, 0}, {1, 1023, 1, false, 0},
    {1, 2001, 2, false, 0}, {1, 4100, 1, false, 1}, {1, 19, 33, true, 1},   {1, 60, 9, true, 0},
};

int run(const char* extent) {
  const bool brief = strcmp(extent, "brief") == 0, all = strcmp(extent, "all") == 0;
  check::Check check;
  struct {
    Order order;
    Async async;
  } const ways[] = {{Order::kGreedy, Async::kLazy},
                    {Order::kReversed, Async::kEager},
                    {Order::kRandom, Async::kLazy},
                    {Order::kRoundRobin, Async::kEager}};
  for (const int capability : {90, 75}) {
    if (!emulator::simulate_chip(capability, kRegisterThreads)) return 2;
    for (int number = capability == 75 && !brief; number < 4; number += all ? 1 : 2) {
      const auto& way = ways[number];
      emulator::set_order(way.order, 1);
      emulator::set_async(way.async);
      try {
        if (brief) {
          check::run_all(check, kFewShapes);
        } else {
          check::run_all(check, kShapes);
        }
        if (capability == 90) {  // the same on every chip
          check::run_pairs(check, check::Entries::kDoubles, brief);
          check::run_attention(check, brief);
          check::run_topk(check, brief);
        }
      } catch (const std::exception& fault) {
        printf("%s\n", fault.what());
        return 1;
      }
      if (brief) break;
    }
  }
  return check::report(check);
}

}  // namespace
}  // namespace fastkd

int main(int count, char** arguments) { return fastkd::run(count > 1 ? arguments[1] : ""); }
