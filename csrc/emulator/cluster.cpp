// SPDX-License-Identifier: Apache-2.0
// The barrier of a cluster, in two steps, and the shared memory of other blocks.
#include "emulator/machine.h"

namespace fastkd::emulator {

void arrive_cluster(Site site) {
  Thread& self = *machine.current;
  ClusterBarrier& barrier = machine.cluster_barrier;
  const int all = static_cast<int>(machine.threads.size());
  if (self.cluster_phase != 0) fault(site, "second arrive_cluster without wait_cluster");
  if (machine.alive < all) {
    fault(site, "divergent barrier: %d of %d threads of the cluster have exited before it",
          all - machine.alive, all);
  }
  if (barrier.arrived == 0) barrier.site = site;
  if (!same_site(site, barrier.site)) {
    fault(site, "divergent barrier: other threads of the cluster arrived at %s:%u",
          barrier.site.file_name(), static_cast<unsigned>(barrier.site.line()));
  }
  self.cluster_phase = barrier.phase;
  sanitizer::release(barrier.tokens[barrier.phase & 1]);
  if (++barrier.arrived < all) return machine.maybe_yield();
  barrier.arrived = 0;
  ++barrier.phase;
  barrier.tokens[barrier.phase & 1] = sanitizer::fresh_token();
  for (Thread& thread : machine.threads) {
    if (thread.warp->wait[thread.lane] != Wait::kCluster) continue;
    thread.wait_for(Wait::kNothing, thread.warp->site[thread.lane]);
    machine.make_ready(*thread.warp, 1u << thread.lane);
  }
}

void wait_cluster(Site site) {
  Thread& self = *machine.current;
  const ClusterBarrier& barrier = machine.cluster_barrier;
  const uint64_t phase = self.cluster_phase;
  if (phase == 0) fault(site, "wait_cluster without arrive_cluster");
  if (barrier.phase == phase) {
    self.wait_for(Wait::kCluster, site);
    machine.run_next();
  }
  self.cluster_phase = 0;
  sanitizer::acquire(barrier.tokens[phase & 1]);
}

void Machine::leave_cluster(const Thread& thread) {
  if (thread.cluster_phase != 0) {
    fault(cluster_barrier.site,
          "divergent barrier: the thread exits between arrive_cluster and wait_cluster");
  }
  if (cluster_barrier.arrived > 0) {
    fault(cluster_barrier.site,
          "divergent barrier: the thread exits while %d others of its cluster have arrived",
          cluster_barrier.arrived);
  }
}

int cluster_rank() { return machine.current->block->rank; }

void* peer_address(void* mine, int rank, Site site) {
  const Block& block = *machine.current->block;
  if (rank < 0 || rank >= static_cast<int>(machine.blocks.size())) {
    fault(site, "peer_shared of rank %d in a cluster of %d", rank,
          static_cast<int>(machine.blocks.size()));
  }
  if (!block.shared.contains(mine, 1)) {
    fault(site, "peer_shared of an address outside the block's shared memory");
  }
  const Block& peer = machine.blocks[static_cast<size_t>(rank)];
  return peer.shared.base() + (static_cast<char*>(mine) - block.shared.base());
}

}  // namespace fastkd::emulator
