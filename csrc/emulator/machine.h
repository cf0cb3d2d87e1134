// SPDX-License-Identifier: Apache-2.0
// The blocks that run at one time (a cluster; without clusters, one block), and who runs next.
#pragma once

#include <bit>
#include <string>
#include <vector>

#include "core/launch_shape.h"
#include "emulator/cuda.h"
#include "emulator/fiber.h"
#include "emulator/report.h"
#include "emulator/settings.h"
#include "emulator/shared_memory.h"

namespace fastkd::emulator {

constexpr int kLanes = 32;

struct Block;
struct Warp;

struct AsyncCopy {
  void* to;
  const void* from;
  int64_t group;
};

struct Thread {
  Fiber* fiber = nullptr;
  Warp* warp = nullptr;
  Block* block = nullptr;
  uint32_t index = 0;  // in the block
  int lane = 0;
  const uint64_t* copy_barrier = nullptr;  // that it waits for
  uint64_t cluster_phase = 0;              // that it arrived in and has not waited for
  bool fenced = false;                     // a fence orders its writes before its next atomics
  std::vector<const void*> seen_atomics;   // that the next fence orders before its reads
  std::vector<AsyncCopy> async_copies;     // not landed yet
  int64_t async_group = 0;                 // the next to be committed

  void wait_for(Wait what, Site site);
};

// One bit a lane in all masks. A lane that is neither ready, nor running, nor gone waits.
struct Warp {
  Thread* threads = nullptr;  // [lanes]
  int index = 0;              // in the cluster
  uint32_t lanes = 0;         // that exist
  uint32_t alive = 0;
  uint32_t ready = 0;
  uint32_t arrived = 0;  // waits in what lanes of a warp do together
  Wait wait[kLanes] = {};
  Site site[kLanes] = {};
  uint32_t mask[kLanes] = {};
  int8_t source[kLanes] = {};
  uint64_t value[kLanes] = {};
  uint64_t result[kLanes] = {};
};

// An mbarrier of one arrival.
struct CopyBarrier {
  uint64_t* word = nullptr;
  uint64_t phase = 0;    // how many are over
  uint64_t awaited = 0;  // the phases before this one were waited for
  bool arrived = false;
  Site site = {};        // of the last arrival
  int64_t bytes = 0;     // expected less landed, in this phase
  void* tokens[2] = {};  // of the phases of even and odd number
};

struct BulkCopy {
  Block* block;
  uint64_t* word;
  void* to;
  const void* from;
  uint32_t bytes;
};

struct ClusterBarrier {
  uint64_t phase = 1;  // the running one
  int arrived = 0;     // in this phase
  Site site = {};      // of the first arrival
  void* tokens[2] = {};
};

struct Block {
  int64_t index = 0;  // in the grid
  int rank = 0;       // in the cluster
  int threads = 0;
  int alive = 0;
  Thread* first_thread = nullptr;
  Warp* first_warp = nullptr;
  int warps = 0;
  int at_barrier = 0;
  Site barrier_site = {};
  SharedMemory shared;
  std::vector<CopyBarrier> copy_barriers;
};

inline void Thread::wait_for(Wait what, Site site) {
  warp->wait[lane] = what;
  warp->site[lane] = site;
}

struct Machine {
  // What runs.
  const char* kernel = "";
  void (*call)(const void*) = nullptr;
  const void* body = nullptr;
  LaunchShape shape = {};
  Order order = Order::kGreedy;
  Async async = Async::kEager;
  Chip chip;
  uint64_t random_state = 1;

  // The cluster. Vectors grow and never move while threads run.
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  std::vector<Thread> threads;
  std::vector<uint64_t> ready_warps;  // one bit a warp
  int alive = 0;                      // threads of the cluster
  ClusterBarrier cluster_barrier;
  std::vector<BulkCopy> in_flight;

  FiberPool fibers;
  Fiber host;
  Thread* current = nullptr;    // nullptr while the host runs
  void* copy_engine = nullptr;  // who copies, for ThreadSanitizer
  void* start_token = nullptr;  // of a cluster
  void* end_token = nullptr;    // of a launch
  char fault_text[1024] = {};   // of a fault; empty: none
  bool deadlock = false;        // the report lists who waits

  uint64_t random() {  // xorshift64
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
  }

  void make_ready(Warp& warp, uint32_t lanes) {
    warp.ready |= lanes;
    ready_warps[static_cast<size_t>(warp.index) / 64] |= uint64_t{1} << (warp.index % 64);
  }

  // Takes the next thread out of the ready ones; nullptr if none is ready.
  Thread* take_next() {
    Warp* warp = current->warp;
    if (order == Order::kGreedy || order == Order::kReversed) {
      if (warp->ready == 0) warp = order == Order::kGreedy ? first_ready(0) : last_ready();
      if (warp == nullptr) return nullptr;
      return take(*warp, order == Order::kGreedy ? std::countr_zero(warp->ready)
                                                 : 31 - std::countl_zero(warp->ready));
    }
    return order == Order::kRoundRobin ? take_after_current() : take_random();
  }

  // Leaves the running thread, which waits or is ready, and returns when its turn comes again.
  void run_next() {
    Thread* next = take_next();
    if (next == nullptr) next = take_when_stuck();
    switch_to(*next);
  }

  // After a barrier that made the running thread ready together with others.
  void go_on() {
    if (order == Order::kGreedy || order == Order::kReversed) {
      take(*current->warp, current->lane);
    } else {
      run_next();
    }
  }

  // Lets others run where real threads often overtake each other.
  void maybe_yield() {
    if (order != Order::kRandom) return;
    make_ready(*current->warp, 1u << current->lane);
    run_next();
  }

  Thread* take(Warp& warp, int lane) {
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) {
      ready_warps[static_cast<size_t>(warp.index) / 64] &= ~(uint64_t{1} << (warp.index % 64));
    }
    return &warp.threads[lane];
  }

  void switch_to(Thread& next) {
    Thread& self = *current;
    if (&next == &self) return;
    current = &next;
    threadIdx.x = next.index;
    if (next.block != self.block) enter(*next.block);
    switch_fiber(*self.fiber, *next.fiber);
  }

  // The first ready warp from `begin` on.
  Warp* first_ready(int begin);
  Warp* last_ready();
  Thread* take_after_current();
  Thread* take_random();
  Thread* take_when_stuck();
  void enter(Block& block);
  // Lands copies that somebody waits for; false if there are none.
  bool land_awaited_copies();
  bool anybody_waits(Wait first, Wait last) const;
  std::string list_waiters() const;

  // ---- a launch: the host's calls, and the end of a thread ----

  std::string run_launch();  // returns "" or a fault's report
  void set_up();
  void run_clusters();
  void run_cluster(int64_t cluster, bool odd);
  void start_block(Block& block, int64_t index);
  void finish_block(Block& block);
  void exit_thread();
  void leave_cluster(const Thread& thread);
  void leave_copies(const Block& block);
};

// The one machine: kernels find it without being told.
extern Machine machine;

}  // namespace fastkd::emulator
