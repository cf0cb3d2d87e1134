// SPDX-License-Identifier: Apache-2.0
// How the emulator runs kernels: in which order, with which kind of asynchronous copies, and what
// the simulated chip allows. Settings hold for all launches that follow.
#pragma once

#include <stdint.h>

#include <stdexcept>

namespace fastkd::emulator {

// Threads change places only where they synchronise (and in kRandom, at atomics and copies too).
enum class Order {
  kRoundRobin,  // thread after thread: hides most races
  kGreedy,      // the running lane goes on while it can, then its warp's first, then the first warp
  kReversed,    // greedy from the other end; blocks too
  kRandom,      // seeded; blocks too
};

enum class Async {
  kEager,  // copies land at once
  kLazy,   // copies land when nothing else can run; until then the destination holds poison
};

struct Chip {
  int threads = 1024;             // of a block
  int cluster = 16;               // blocks of a cluster
  int64_t shared_bytes = 232448;  // dynamic shared memory of a block: 227 KiB (sm_90)
  int room = 16;                  // blocks of a cluster for which this very chip has room
};

void set_order(Order order, uint64_t seed = 0);
void set_async(Async async);
void set_chip(const Chip& chip);

// What the emulator found wrong with a kernel while it ran.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace fastkd::emulator
