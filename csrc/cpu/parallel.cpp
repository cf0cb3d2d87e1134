// SPDX-License-Identifier: Apache-2.0
#include "cpu/parallel.h"

namespace fastkd::cpu {

namespace {
ParallelFor pool = nullptr;
}

void set_parallel_for(ParallelFor function) { pool = function; }

bool run_parallel(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  if (count <= 0) return true;
  if (pool == nullptr || count <= grain) {
    body(0, count, context);
    return true;
  }
  return pool(0, count, grain, body, context) == 0;
}

}  // namespace fastkd::cpu
