// SPDX-License-Identifier: Apache-2.0
// What the lanes of a warp do together: shuffles, votes, the warp barrier.
//
// A lane leaves its value and waits; the last lane named in the mask works out everybody's result.
#include "emulator/machine.h"

namespace fastkd::emulator {
namespace {

template <class F>
void for_each_lane(uint32_t lanes, F&& f) {
  for (; lanes != 0; lanes &= lanes - 1) f(std::countr_zero(lanes));
}

// Whether all lanes of the running lane's mask wait for the same thing. Reports those that never
// will: they wait for this lane elsewhere.
bool all_agree(const Warp& warp, int self) {
  const uint32_t mask = warp.mask[self];
  uint64_t differs = 0;
  for_each_lane(mask, [&](int lane) {
    differs |= std::bit_cast<uint64_t>(warp.site[lane]) ^ std::bit_cast<uint64_t>(warp.site[self]);
    differs |= warp.mask[lane] ^ mask;
    differs |= static_cast<uint64_t>(warp.wait[lane]) ^ static_cast<uint64_t>(warp.wait[self]);
  });
  if (differs == 0) return true;
  bool agree = true;
  for_each_lane(mask, [&](int lane) {
    if (warp.mask[lane] == mask && warp.wait[lane] == warp.wait[self] &&
        same_site(warp.site[lane], warp.site[self])) {
      return;
    }
    agree = false;
    if ((warp.mask[lane] >> self & 1) == 0) return;  // may still come here
    fault(warp.site[self],
          "divergent warp: %s of lanes %s meets lane %d in %s of lanes %s at %s:%u",
          name_of(warp.wait[self]), list_lanes(mask).chars, lane, name_of(warp.wait[lane]),
          list_lanes(warp.mask[lane]).chars, warp.site[lane].file_name(),
          static_cast<unsigned>(warp.site[lane].line()));
  });
  return agree;
}

// Everything that all of these lanes did comes before everything that any of them does from here.
void order_lanes([[maybe_unused]] const Warp& warp, [[maybe_unused]] uint32_t lanes) {
  if constexpr (sanitizer::kThread) {
    void* token = sanitizer::fresh_token();
    for_each_lane(lanes, [&](int lane) {
      const sanitizer::ActAs other(warp.threads[lane].fiber->race_clock);
      sanitizer::release(token);
    });
    for_each_lane(lanes, [&](int lane) {
      const sanitizer::ActAs other(warp.threads[lane].fiber->race_clock);
      sanitizer::acquire(token);
    });
  }
}

void finish(Warp& warp, int self) {
  const uint32_t mask = warp.mask[self];
  const Wait kind = warp.wait[self];
  if (kind == Wait::kWarp) {
    order_lanes(warp, mask);
  } else if (kind >= Wait::kBallot) {
    uint64_t votes = 0;
    for_each_lane(mask, [&](int lane) { votes |= warp.value[lane] << lane; });
    for_each_lane(mask, [&](int lane) { warp.result[lane] = votes; });
  } else {
    uint32_t sources = 0;
    for_each_lane(mask, [&](int lane) {
      warp.result[lane] = warp.value[warp.source[lane]];
      sources |= 1u << warp.source[lane];
    });
    if ((sources & ~mask) != 0) {
      fault(warp.site[self], "%s reads lane %s, which its mask, lanes %s, does not name",
            name_of(kind), list_lanes(sources & ~mask).chars, list_lanes(mask).chars);
    }
  }
}

uint64_t meet(Wait kind, uint32_t mask, uint64_t value, int source, Site site) {
  Thread& self = *machine.current;
  Warp& warp = *self.warp;
  const int lane = self.lane;
  const uint32_t bit = 1u << lane;
  self.wait_for(kind, site);
  warp.mask[lane] = mask;
  warp.value[lane] = value;
  warp.source[lane] = static_cast<int8_t>(source);
  if ((mask & bit) == 0) {
    fault(site, "%s with a mask, lanes %s, that does not name the calling lane %d", name_of(kind),
          list_lanes(mask).chars, lane);
  }
  if ((mask & ~warp.alive) != 0) {
    fault(site, "divergent warp: %s waits for lanes %s, which have exited or never were",
          name_of(kind), list_lanes(mask & ~warp.alive).chars);
  }
  warp.arrived |= bit;
  if ((warp.arrived & mask) == mask && all_agree(warp, lane)) {
    warp.arrived &= ~mask;
    finish(warp, lane);
    machine.make_ready(warp, mask);
    machine.go_on();
  } else {
    machine.run_next();
  }
  return warp.result[lane];
}

}  // namespace

uint64_t shuffle(Wait kind, uint32_t mask, uint64_t value, int operand, int width, Site site) {
  const int lane = machine.current->lane;
  if (width < 1 || width > kLanes || (width & (width - 1)) != 0) {
    fault(site, "shuffle of width %d, which is no power of two up to 32", width);
  }
  // PTX ISA, shfl.sync: a source beyond its bound leaves the lane its own value.
  const int first = lane & -width, last = first + width - 1, distance = operand & (kLanes - 1);
  int source = lane;
  switch (kind) {
    case Wait::kShuffleUp:
      source = lane - distance >= first ? lane - distance : lane;
      break;
    case Wait::kShuffleDown:
      source = lane + distance <= last ? lane + distance : lane;
      break;
    case Wait::kShuffleXor:
      source = (lane ^ distance) <= last ? lane ^ distance : lane;
      break;
    default:
      source = first | (distance & (width - 1));
  }
  return meet(kind, mask, value, source, site);
}

uint32_t ballot(Wait kind, uint32_t mask, bool predicate, Site site) {
  return static_cast<uint32_t>(meet(kind, mask, predicate ? 1 : 0, 0, site));
}

void sync_warp(uint32_t mask, Site site) { meet(Wait::kWarp, mask, 0, 0, site); }

}  // namespace fastkd::emulator
