// SPDX-License-Identifier: Apache-2.0
// The barrier of a block, and the end of a thread.
#include "emulator/machine.h"

namespace fastkd::emulator {
namespace {

// Everything that the block did comes before everything that any of its threads does from here.
void order_threads([[maybe_unused]] const Block& block) {
  if constexpr (sanitizer::kThread) {
    void* token = sanitizer::fresh_token();
    for (int i = 0; i < block.threads; ++i) {
      const sanitizer::ActAs other(block.first_thread[i].fiber->race_clock);
      sanitizer::release(token);
    }
    for (int i = 0; i < block.threads; ++i) {
      const sanitizer::ActAs other(block.first_thread[i].fiber->race_clock);
      sanitizer::acquire(token);
    }
  }
}

}  // namespace

void sync_block(Site site) {
  Thread& self = *machine.current;
  Block& block = *self.block;
  self.wait_for(Wait::kBlock, site);
  if (block.alive < block.threads) {
    fault(site, "divergent barrier: %d of %d threads of the block have exited before it",
          block.threads - block.alive, block.threads);
  }
  if (block.at_barrier == 0) block.barrier_site = site;
  if (!same_site(site, block.barrier_site)) {
    fault(site, "divergent barrier: other threads of the block wait in __syncthreads at %s:%u",
          block.barrier_site.file_name(), static_cast<unsigned>(block.barrier_site.line()));
  }
  if (++block.at_barrier < block.threads) return machine.run_next();
  block.at_barrier = 0;
  order_threads(block);
  for (int i = 0; i < block.warps; ++i) {
    machine.make_ready(block.first_warp[i], block.first_warp[i].lanes);
  }
  machine.go_on();
}

void Machine::exit_thread() {
  Thread& self = *current;
  Block& block = *self.block;
  Warp& warp = *self.warp;
  warp.alive &= ~(1u << self.lane);
  for (uint32_t waiting = warp.arrived; waiting != 0; waiting &= waiting - 1) {
    const int lane = std::countr_zero(waiting);
    if ((warp.mask[lane] >> self.lane & 1) == 0) continue;
    fault(warp.site[lane], "divergent warp: lane %d exits while lane %d waits for it in %s",
          self.lane, lane, name_of(warp.wait[lane]));
  }
  if (block.at_barrier > 0) {
    fault(block.barrier_site,
          "divergent barrier: the thread exits while %d others of its block wait in __syncthreads",
          block.at_barrier);
  }
  leave_cluster(self);
  async_wait(0);
  sanitizer::release(end_token);
  if (block.alive == 1) leave_copies(block);
  --alive;
  if (--block.alive == 0 && alive > 0) block.shared.forbid(true);
  if (alive > 0) return run_next();
  current = nullptr;
  switch_fiber(*self.fiber, host);
}

}  // namespace fastkd::emulator
