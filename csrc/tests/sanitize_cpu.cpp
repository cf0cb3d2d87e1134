// SPDX-License-Identifier: Apache-2.0
// The CPU's kernels under sanitizers, on one thread and on two.
#include <thread>

#include "cpu/parallel.h"
#include "tests/attention_check.h"
#include "tests/kernel_check.h"
#include "tests/pair_check.h"
#include "tests/topk_check.h"

namespace fastkd {
namespace {

// A pool of two threads, to run the kernels' threading too.
int32_t two_threads(int64_t begin, int64_t end, int64_t, void (*body)(int64_t, int64_t, void*),
                    void* context) {
  const int64_t middle = begin + (end - begin) / 2;
  std::thread other(body, begin, middle, context);
  body(middle, end, context);
  other.join();
  return 0;
}

constexpr check::Shape kShapes[] = {
    {1, 1, 1, false, 0},    {3, 10, 1, false, 0},   {2, 16, 3, false, 5},   {1, 17, 4, false, 1},
    {2, 1023, 1, false, 0}, {1, 1024, 2, false, 0}, {1, 2500, 2, false, 3}, {2, 19, 8, true, 0},
    {1, 5, 16, true, 0},    {2, 19, 131, true, 3},  {1, 300, 65, true, 0},  {1, 1100, 9, true, 1},
};

int run() {
  check::Check check;
  for (const bool threaded : {false, true}) {
    cpu::set_parallel_for(threaded ? two_threads : nullptr);
    check::run_all(check, kShapes);
    check::run_pairs(check, check::Entries::kFloats, false);
    check::run_attention(check);
    check::run_topk(check);
  }
  return check::report(check);
}

}  // namespace
}  // namespace fastkd

int main() { return fastkd::run(); }
