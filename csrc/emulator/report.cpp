// SPDX-License-Identifier: Apache-2.0
#include "emulator/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "emulator/machine.h"

namespace fastkd::emulator {

const char* name_of(Wait wait) {
  switch (wait) {
    case Wait::kNothing:
      return "nothing";
    case Wait::kBlock:
      return "__syncthreads";
    case Wait::kCluster:
      return "wait_cluster";
    case Wait::kCopy:
      return "copy_barrier_wait";
    case Wait::kWarp:
      return "__syncwarp";
    case Wait::kShuffle:
      return "__shfl_sync";
    case Wait::kShuffleUp:
      return "__shfl_up_sync";
    case Wait::kShuffleDown:
      return "__shfl_down_sync";
    case Wait::kShuffleXor:
      return "__shfl_xor_sync";
    case Wait::kBallot:
      return "__ballot_sync";
    case Wait::kAny:
      return "__any_sync";
    case Wait::kAll:
      return "__all_sync";
  }
  return "?";
}

bool same_site(Site a, Site b) {
  if (std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b)) return true;
  return a.line() == b.line() && a.column() == b.column() &&
         strcmp(a.file_name(), b.file_name()) == 0;
}

template <int kBytes>
void Text<kBytes>::print(const char* format, ...) {
  const sanitizer::ActAs host(machine.host.race_clock);
  va_list arguments;
  va_start(arguments, format);
  length += vsnprintf(chars + length, static_cast<size_t>(kBytes - length), format, arguments);
  length = std::min(length, kBytes - 1);
  va_end(arguments);
}

template struct Text<100>;
template struct Text<200>;

Text<100> list_lanes(uint32_t lanes) {
  Text<100> text;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    int last = lane;
    while (last + 1 < kLanes && (lanes >> (last + 1) & 1) != 0) ++last;
    text.print(last > lane ? "%s%d-%d" : "%s%d", text.length > 0 ? "," : "", lane, last);
    lane = last;
  }
  return text;
}

void fault(Site site, const char* what, ...) {
  Thread& self = *machine.current;
  {
    const sanitizer::ActAs host(machine.host.race_clock);
    char* text = machine.fault_text;
    const int length =
        snprintf(text, sizeof(machine.fault_text),
                 "kernel %s, block %ld, thread %u, at %s:%u: ", machine.kernel, self.block->index,
                 self.index, site.line() == 0 ? "(start of the kernel)" : site.file_name(),
                 static_cast<unsigned>(site.line()));
    va_list arguments;
    va_start(arguments, what);
    vsnprintf(text + length, sizeof(machine.fault_text) - static_cast<size_t>(length), what,
              arguments);
    va_end(arguments);
  }
  machine.current = nullptr;
  switch_fiber(*self.fiber, machine.host);
  __builtin_unreachable();
}

// A line for each place and block.
std::string Machine::list_waiters() const {
  std::map<std::tuple<int64_t, Wait, std::string>, std::vector<uint32_t>> groups;
  for (const Thread& thread : threads) {
    const Warp& warp = *thread.warp;
    if ((warp.alive >> thread.lane & 1) == 0) continue;
    const Site site = warp.site[thread.lane];
    groups[{thread.block->index, warp.wait[thread.lane],
            std::string(site.file_name()) + ":" + std::to_string(site.line())}]
        .push_back(thread.index);
  }
  std::string text;
  for (const auto& [place, waiting] : groups) {
    const auto& [block, what, where] = place;
    text += "\n  block " + std::to_string(block) + ": " + std::to_string(waiting.size()) +
            " waiting from thread " + std::to_string(waiting.front()) + " to " +
            std::to_string(waiting.back()) + ", in " + name_of(what) + " at " + where;
  }
  return text;
}

bool Machine::anybody_waits(Wait first, Wait last) const {
  for (const Warp& warp : warps) {
    for (uint32_t lanes = warp.alive; lanes != 0; lanes &= lanes - 1) {
      const Wait wait = warp.wait[std::countr_zero(lanes)];
      if (wait >= first && wait <= last) return true;
    }
  }
  return false;
}

Thread* Machine::take_when_stuck() {
  if (land_awaited_copies()) {
    if (Thread* next = take_next()) return next;
  }
  const Thread& self = *current;
  const char* what = "deadlock: bytes that a copy barrier expects never come";
  if (anybody_waits(Wait::kCluster, Wait::kCluster)) {
    what = "divergent barrier: not all threads of the cluster come to arrive_cluster";
  }
  if (anybody_waits(Wait::kBlock, Wait::kBlock)) {
    what = "divergent barrier: not all threads of the block come to __syncthreads";
  }
  if (anybody_waits(Wait::kWarp, Wait::kAll)) {
    what = "divergent warp: lanes wait for lanes that wait elsewhere";
  }
  deadlock = true;
  fault(self.warp->site[self.lane], "%s", what);
}

}  // namespace fastkd::emulator
