// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies into shared memory: bulk copies with their barriers, and cp.async.
#include <algorithm>

#include "emulator/machine.h"

namespace fastkd::emulator {
namespace {

// PTX ISA, mbarrier: the range of the count of expected bytes.
constexpr int64_t kMaxBytes = (1 << 20) - 1;
constexpr uint64_t kBarrierMark = 0x6d62617272696572ull;  // in a barrier's word, to see overwriting

CopyBarrier& find_barrier(Block& block, uint64_t* word, Site site) {
  const auto found = std::find_if(block.copy_barriers.begin(), block.copy_barriers.end(),
                                  [&](const CopyBarrier& b) { return b.word == word; });
  if (found == block.copy_barriers.end()) fault(site, "copy barrier that was never initialised");
  sanitizer::note_read(word, 8);
  if (*word != kBarrierMark) fault(site, "copy barrier whose memory was overwritten");
  return *found;
}

void check_shared(const Block& block, const void* to, int64_t bytes, Site site) {
  if (!block.shared.contains(to, bytes)) {
    fault(site, "copy of %ld bytes to outside the block's shared memory", bytes);
  }
}

void end_phase_if_complete(Block& block, CopyBarrier& barrier) {
  if (!barrier.arrived || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.arrived = false;
  barrier.tokens[barrier.phase & 1] = sanitizer::fresh_token();
  for (int i = 0; i < block.threads; ++i) {
    Thread& thread = block.first_thread[i];
    if (thread.copy_barrier != barrier.word) continue;
    thread.copy_barrier = nullptr;
    machine.make_ready(*thread.warp, 1u << thread.lane);
  }
}

void land(const BulkCopy& copy) {
  CopyBarrier& barrier =
      *std::find_if(copy.block->copy_barriers.begin(), copy.block->copy_barriers.end(),
                    [&](const CopyBarrier& b) { return b.word == copy.word; });
  {
    const sanitizer::ActAs engine(machine.copy_engine);
    sanitizer::copy_bytes(copy.to, copy.from, copy.bytes);
    sanitizer::release(barrier.tokens[barrier.phase & 1]);
  }
  barrier.bytes -= copy.bytes;
  end_phase_if_complete(*copy.block, barrier);
}

// Until it lands, a copy's destination holds nothing of use.
void poison_destination(void* to, int64_t bytes) {
  sanitizer::note_write(to, bytes);
  sanitizer::fill_quietly(to, kPoison, bytes);
  sanitizer::make_undefined(to, bytes);
}

}  // namespace

void copy_barrier_init(uint64_t* word, Site site) {
  Block& block = *machine.current->block;
  check_aligned(word, 8, site);
  check_shared(block, word, 8, site);
  const sanitizer::ActAs host(machine.host.race_clock);
  auto& all = block.copy_barriers;
  std::erase_if(all, [&](const CopyBarrier& b) { return b.word == word; });
  all.push_back({});
  all.back().word = word;
  all.back().tokens[0] = sanitizer::fresh_token();
  all.back().tokens[1] = sanitizer::fresh_token();
  const sanitizer::ActAs self(machine.current->fiber->race_clock);
  sanitizer::note_write(word, 8);
  *word = kBarrierMark;
}

void copy_barrier_expect(uint64_t* word, uint32_t bytes, Site site) {
  Block& block = *machine.current->block;
  CopyBarrier& barrier = find_barrier(block, word, site);
  if (barrier.arrived) fault(site, "second arrival in one phase of a copy barrier");
  barrier.arrived = true;
  barrier.site = site;
  barrier.bytes += bytes;
  if (barrier.bytes > kMaxBytes) fault(site, "copy barrier that expects 1 MiB or more");
  sanitizer::release(barrier.tokens[barrier.phase & 1]);
  end_phase_if_complete(block, barrier);
  machine.maybe_yield();
}

void copy_barrier_wait(uint64_t* word, uint32_t parity, Site site) {
  Thread& self = *machine.current;
  if (parity > 1) fault(site, "phase parity %u", parity);
  CopyBarrier* barrier = &find_barrier(*self.block, word, site);
  while ((barrier->phase & 1) == parity) {
    self.wait_for(Wait::kCopy, site);
    self.copy_barrier = word;
    machine.run_next();
    barrier = &find_barrier(*self.block, word, site);
  }
  barrier->awaited = barrier->phase;
  sanitizer::acquire(barrier->tokens[parity]);
}

void bulk_copy(void* shared, const void* global, uint32_t bytes, uint64_t* word, Site site) {
  Block& block = *machine.current->block;
  CopyBarrier& barrier = find_barrier(block, word, site);
  check_aligned(shared, 16, site);
  check_aligned(global, 16, site);
  if (bytes == 0 || bytes % 16 != 0) {
    fault(site, "bulk copy of %u bytes, not a multiple of 16", bytes);
  }
  check_shared(block, shared, bytes, site);
  void* issued = sanitizer::fresh_token();
  sanitizer::release(issued);
  const BulkCopy copy{&block, barrier.word, shared, global, bytes};
  {
    const sanitizer::ActAs engine(machine.copy_engine);
    sanitizer::acquire(issued);
    if (machine.async == Async::kLazy) poison_destination(shared, bytes);
  }
  if (machine.async == Async::kEager) {
    land(copy);
  } else {
    const sanitizer::ActAs host(machine.host.race_clock);
    machine.in_flight.push_back(copy);
  }
  machine.maybe_yield();
}

bool Machine::land_awaited_copies() {
  const sanitizer::ActAs as_host(host.race_clock);
  std::vector<BulkCopy> awaited;
  std::erase_if(in_flight, [&](const BulkCopy& copy) {
    const Thread* begin = copy.block->first_thread;
    const bool wanted = std::any_of(begin, begin + copy.block->threads, [&](const Thread& thread) {
      return thread.copy_barrier == copy.word;
    });
    if (wanted) awaited.push_back(copy);
    return wanted;
  });
  for (const BulkCopy& copy : awaited) land(copy);
  return !awaited.empty();
}

void Machine::leave_copies(const Block& block) {
  for (const CopyBarrier& barrier : block.copy_barriers) {
    if (barrier.awaited == barrier.phase && !barrier.arrived && barrier.bytes == 0) continue;
    fault(barrier.site, "the block ends without waiting for what it copies into its shared memory");
  }
}

void async_copy16(void* shared, const void* global, Site site) {
  Thread& self = *machine.current;
  check_aligned(shared, 16, site);
  check_aligned(global, 16, site);
  check_shared(*self.block, shared, 16, site);
  if (machine.async == Async::kEager) return sanitizer::copy_bytes(shared, global, 16);
  poison_destination(shared, 16);
  const sanitizer::ActAs host(machine.host.race_clock);
  self.async_copies.push_back({shared, global, self.async_group});
}

void async_commit() { ++machine.current->async_group; }

void async_wait(int groups_left) {
  Thread& self = *machine.current;
  auto& copies = self.async_copies;
  const int64_t first_left = self.async_group - groups_left;
  const auto end = std::find_if(copies.begin(), copies.end(),
                                [&](const AsyncCopy& copy) { return copy.group >= first_left; });
  for (auto copy = copies.begin(); copy != end; ++copy) {
    sanitizer::copy_bytes(copy->to, copy->from, 16);
  }
  const sanitizer::ActAs host(machine.host.race_clock);
  copies.erase(copies.begin(), end);
}

}  // namespace fastkd::emulator
