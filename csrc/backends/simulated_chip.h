// SPDX-License-Identifier: Apache-2.0
// The chip that the emulator stands for: what plan() is told, and what a launch may ask for.
#pragma once

#include "cuda/plan.h"

namespace fastkd::emulator {

// Capability 75, 80, 86, 89, 90, 100 or 120; false: no such chip. 90 until it is called. `room`:
// blocks of a cluster that it takes, whatever plan() is told.
bool simulate_chip(int capability, int register_threads = cuda::kRegisterThreads, int room = 16);

}  // namespace fastkd::emulator
