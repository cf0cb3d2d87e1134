// SPDX-License-Identifier: Apache-2.0
// Shared memory as threads see it, alignment, atomics and fences.
#include <algorithm>

#include "emulator/machine.h"

namespace fastkd::emulator {

char* shared_memory() { return machine.current->block->shared.base(); }

void* declare_shared(void* array, int64_t bytes, Site site) {
  Text<200> wrong;
  {
    const sanitizer::ActAs host(machine.host.race_clock);
    machine.current->block->shared.declare(static_cast<const char*>(array), bytes, wrong);
  }
  if (wrong.length > 0) fault(site, "%s", wrong.chars);
  return array;
}

void check_aligned(const void* data, int bytes, Site site) {
  const int beyond =
      static_cast<int>(reinterpret_cast<uintptr_t>(data) % static_cast<uint64_t>(bytes));
  if (beyond == 0) return;
  fault(site, "misaligned access: %d bytes beyond a multiple of %d", beyond, bytes);
}

// For ThreadSanitizer, a fence followed by an atomic access of the same thread releases, and an
// atomic access followed by a fence acquires (PTX memory model, fence-fence synchronisation).
void before_atomic(const void* address) {
  if constexpr (sanitizer::kThread) {
    Thread& self = *machine.current;
    if (self.fenced) sanitizer::release(const_cast<void*>(address));
    const sanitizer::ActAs host(machine.host.race_clock);
    auto& seen = self.seen_atomics;
    if (std::find(seen.begin(), seen.end(), address) == seen.end()) seen.push_back(address);
  }
  machine.maybe_yield();
}

void fence() {
  if constexpr (sanitizer::kThread) {
    Thread& self = *machine.current;
    self.fenced = true;
    for (const void* address : self.seen_atomics) sanitizer::acquire(const_cast<void*>(address));
  }
  machine.maybe_yield();
}

}  // namespace fastkd::emulator
