// SPDX-License-Identifier: Apache-2.0
// The checks of sanitize_cuda.cpp on a GPU, without torch: alone, and for compute-sanitizer.
#include "tests/attention_check.h"
#include "tests/kernel_check.h"
#include "tests/pair_check.h"
#include "tests/topk_check.h"

namespace {

using fastkd::check::Shape;

// Lanes of a warp, a warp, a block, a cluster, shared memory by bulk copies and without, columns in
// registers and streamed. Mixed types, of which each shape has six, are streamed.
constexpr Shape kShapes[] = {
    {3, 10, 5, false, 0},     {1, 77, 4, false, 3},     {1, 300, 3, false, 1},
    {1, 1000, 2, false, 0},   {1, 2001, 2, false, 0},   {1, 8205, 2, false, 0},
    {1, 140000, 1, false, 0}, {1, 140003, 1, false, 0}, {1, 19, 33, true, 1},
    {1, 60, 9, true, 0},      {1, 200, 7, true, 0},
};

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    printf("there is no CUDA device\n");
    return 2;
  }
  fastkd::check::Check check;
  fastkd::check::run_all(check, kShapes);
  fastkd::check::run_pairs(check, fastkd::check::Entries::kDoubles, true);
  fastkd::check::run_attention(check, true);
  fastkd::check::run_topk(check, true);
  return fastkd::check::report(check);
}
