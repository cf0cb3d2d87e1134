// SPDX-License-Identifier: Apache-2.0
// What running threads may call beyond CUDA's own names. Every call that can be wrong carries its
// site in the source, for the reports.
#pragma once

#include <stdint.h>

#include <source_location>

namespace fastkd::emulator {

using Site = std::source_location;

// ---- warps and blocks ----

enum class Wait : uint8_t {
  kNothing,
  kBlock,
  kCluster,
  kCopy,
  // What the lanes of a warp do together starts here.
  kWarp,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
};

void sync_block(Site site = Site::current());
// Returns what the source lane gave; `operand` is a lane, a distance or a lane mask.
uint64_t shuffle(Wait kind, uint32_t mask, uint64_t value, int operand, int width, Site site);
uint32_t ballot(Wait kind, uint32_t mask, bool predicate, Site site);
void sync_warp(uint32_t mask, Site site);
// Comes before every atomic access; orders memory only together with fence().
void before_atomic(const void* address);
void fence();

// ---- memory ----

constexpr int64_t kRedZone = 16;

// The running block's dynamic shared memory, aligned to 128 bytes (and not to 256).
char* shared_memory();
// Tells of an array in shared memory that nothing may touch the kRedZone bytes behind. All threads
// of a block declare the same arrays, each once or more. Returns `array`.
void* declare_shared(void* array, int64_t bytes, Site site = Site::current());
void check_aligned(const void* data, int bytes, Site site = Site::current());

// ---- clusters ----

int cluster_rank();
// Every thread of the cluster arrives, then waits.
void arrive_cluster(Site site = Site::current());
void wait_cluster(Site site = Site::current());
void* peer_address(void* mine, int rank, Site site);

// The same place in the shared memory of another block of the cluster.
template <class T>
T* peer_shared(T* mine, int rank, Site site = Site::current()) {
  return static_cast<T*>(peer_address(mine, rank, site));
}

// ---- asynchronous copies into shared memory ----

// A barrier of one arrival: a phase is over when copy_barrier_expect was called and all bytes that
// it expects are in.
void copy_barrier_init(uint64_t* barrier, Site site = Site::current());
void copy_barrier_expect(uint64_t* barrier, uint32_t bytes, Site site = Site::current());
// Returns once the phase of this parity is over; the phase before the first one is.
void copy_barrier_wait(uint64_t* barrier, uint32_t parity, Site site = Site::current());
void bulk_copy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier,
               Site site = Site::current());

// cp.async: a thread's own copies, awaited in groups, oldest first.
void async_copy16(void* shared, const void* global, Site site = Site::current());
void async_commit();
void async_wait(int groups_left);

}  // namespace fastkd::emulator
