// SPDX-License-Identifier: Apache-2.0
// Faults: what a running thread says before it is left where it is.
//
// Nothing here allocates: a fault abandons the fiber's stack and with it whatever owns memory.
#pragma once

#include <stdint.h>

#include "emulator/device_calls.h"

namespace fastkd::emulator {

// Ends the launch: the host throws Fault. A default-constructed site is an unknown one.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fault(Site site, const char* what, ...);

const char* name_of(Wait wait);
bool same_site(Site a, Site b);

// Text for a report, cut off where it gets too long.
template <int kBytes>
struct Text {
  char chars[kBytes] = {};
  int length = 0;

  __attribute__((format(printf, 2, 3))) void print(const char* format, ...);
};

// "0-15,31"; at most 16 ranges.
Text<100> list_lanes(uint32_t lanes);

}  // namespace fastkd::emulator
