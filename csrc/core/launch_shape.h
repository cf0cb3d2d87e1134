// SPDX-License-Identifier: Apache-2.0
// The size of a launch, for the CUDA runtime and for the emulator alike.
#pragma once

#include <stdint.h>

namespace fastkd {

struct LaunchShape {
  int64_t blocks;        // of the whole grid, a multiple of `cluster`
  int threads;           // of a block
  int cluster;           // blocks that share their shared memory; 1: no clusters
  int64_t shared_bytes;  // dynamic shared memory of a block
};

}  // namespace fastkd
