// SPDX-License-Identifier: Apache-2.0
// Threads: torch's own pool, so that torch.set_num_threads holds and no second OpenMP appears.
#pragma once

#include <stdint.h>

namespace fastkd::cpu {

// The C function `torch_parallel_for` of libtorch_cpu (torch >= 2.10, torch/csrc/stable/c/shim.h).
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain,
                                void (*body)(int64_t, int64_t, void*), void* context);

// nullptr: everything runs on the calling thread.
void set_parallel_for(ParallelFor function);

// body(begin, end) over ranges of at least `grain` that cover [0, count). Returns false if the pool
// reports a failure. The body must not throw.
bool run_parallel(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context);

template <class Body>
bool parallel_for(int64_t count, int64_t grain, Body& body) {
  return run_parallel(
      count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

}  // namespace fastkd::cpu
