// SPDX-License-Identifier: Apache-2.0
// Picks the next thread across warps, and leads blocks through a launch.
#include "emulator/machine.h"

#include <stdio.h>

#include <algorithm>
#include <numeric>

namespace fastkd::emulator {

Machine machine;

namespace {

// Where every fiber starts. It runs one thread after another, of successive blocks.
void run_threads() {
  after_switch(*machine.current->fiber);
  for (;;) {
    sanitizer::acquire(machine.start_token);
    machine.call(machine.body);
    machine.exit_thread();
  }
}

}  // namespace

// ---- who runs next ----

Warp* Machine::first_ready(int begin) {
  for (size_t word = static_cast<size_t>(begin) / 64; word < ready_warps.size(); ++word) {
    uint64_t bits = ready_warps[word];
    if (word == static_cast<size_t>(begin) / 64) bits &= ~uint64_t{0} << (begin % 64);
    if (bits != 0) return &warps[word * 64 + static_cast<size_t>(std::countr_zero(bits))];
  }
  return nullptr;
}

Warp* Machine::last_ready() {
  for (size_t word = ready_warps.size(); word-- > 0;) {
    const uint64_t bits = ready_warps[word];
    if (bits != 0) return &warps[word * 64 + 63 - static_cast<size_t>(std::countl_zero(bits))];
  }
  return nullptr;
}

Thread* Machine::take_after_current() {
  Warp* warp = current->warp;
  const uint32_t later = current->lane == 31 ? 0 : warp->ready & (~0u << (current->lane + 1));
  if (later != 0) return take(*warp, std::countr_zero(later));
  warp = first_ready(current->warp->index + 1);
  if (warp == nullptr) warp = first_ready(0);
  return warp == nullptr ? nullptr : take(*warp, std::countr_zero(warp->ready));
}

// The first ready one from a random place on: not uniform, but quick.
Thread* Machine::take_random() {
  const uint64_t number = random();
  Warp* warp = first_ready(static_cast<int>((number >> 8) % warps.size()));
  if (warp == nullptr) warp = first_ready(0);
  if (warp == nullptr) return nullptr;
  const int turn = static_cast<int>(number % kLanes);
  return take(*warp, (turn + std::countr_zero(std::rotr(warp->ready, turn))) % kLanes);
}

// A block's shared memory is out of bounds for its peers until the block runs.
void Machine::enter(Block& block) {
  blockIdx.x = static_cast<unsigned>(block.index);
  block.shared.forbid(false);
}

// ---- a launch ----

void Machine::set_up() {
  const auto block_count = static_cast<size_t>(shape.cluster);
  const auto thread_count = static_cast<size_t>(shape.threads);
  const size_t warp_count = (thread_count + kLanes - 1) / kLanes;
  fibers.reserve(block_count * thread_count, run_threads);
  for (size_t i = block_count; i < blocks.size(); ++i) blocks[i].shared.release();
  blocks.resize(block_count);
  warps.assign(block_count * warp_count, Warp{});
  threads.assign(block_count * thread_count, Thread{});
  ready_warps.assign((warps.size() + 63) / 64, 0);
  for (size_t b = 0; b < block_count; ++b) {
    Block& block = blocks[b];
    block.rank = static_cast<int>(b);
    block.threads = shape.threads;
    block.first_thread = &threads[b * thread_count];
    block.first_warp = &warps[b * warp_count];
    block.warps = static_cast<int>(warp_count);
    block.shared.reserve(shape.shared_bytes);
    for (size_t i = 0; i < thread_count; ++i) {
      Thread& thread = block.first_thread[i];
      thread.warp = &block.first_warp[i / kLanes];
      thread.block = &block;
      thread.index = static_cast<uint32_t>(i);
      thread.lane = static_cast<int>(i % kLanes);
      if (thread.lane == 0) thread.warp->threads = &thread;
      thread.warp->lanes |= 1u << thread.lane;
    }
    for (size_t i = 0; i < warp_count; ++i) {
      block.first_warp[i].index = static_cast<int>(b * warp_count + i);
    }
  }
  blockDim = {static_cast<unsigned>(shape.threads), 1, 1};
  gridDim = {static_cast<unsigned>(shape.blocks), 1, 1};
}

void Machine::run_clusters() {
  const int64_t clusters = shape.blocks / shape.cluster;
  // kRandom: i -> a i + b modulo the clusters, with a prime to them, is a permutation.
  int64_t a = 1, b = 0;
  if (order == Order::kRandom) {
    b = static_cast<int64_t>(random() % static_cast<uint64_t>(clusters));
    do {
      a = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(clusters));
    } while (std::gcd(a, clusters) != 1);
  }
  for (int64_t i = 0; i < clusters && fault_text[0] == 0; ++i) {
    run_cluster(order == Order::kReversed ? clusters - 1 - i : (a * i + b) % clusters, i % 2 != 0);
  }
}

void Machine::run_cluster(int64_t cluster, bool odd) {
  sanitizer::reset_tokens();
  in_flight.clear();
  cluster_barrier = {};
  for (void*& token : cluster_barrier.tokens) token = sanitizer::fresh_token();
  alive = static_cast<int>(threads.size());
  for (Block& block : blocks) start_block(block, cluster * shape.cluster + block.rank);
  for (size_t i = 0; i < threads.size(); ++i) threads[i].fiber = fibers.get(i, odd);
  copy_engine = fibers.copy_engine(odd);
  start_token = sanitizer::fresh_token();
  sanitizer::release(start_token);

  current = order == Order::kGreedy ? &threads.front() : &threads.back();
  current = take_next();
  threadIdx.x = current->index;
  enter(*current->block);
  switch_fiber(host, *current->fiber);

  for (Block& block : blocks) finish_block(block);
}

void Machine::start_block(Block& block, int64_t index) {
  block.index = index;
  block.alive = block.threads;
  block.at_barrier = 0;
  block.copy_barriers.clear();
  block.shared.start();
  if (shape.cluster > 1) block.shared.forbid(true);
  for (int i = 0; i < block.warps; ++i) {
    Warp& warp = block.first_warp[i];
    warp.alive = warp.lanes;
    warp.arrived = 0;
    warp.ready = 0;
    make_ready(warp, warp.lanes);
  }
  for (int i = 0; i < block.threads; ++i) {
    Thread& thread = block.first_thread[i];
    thread.copy_barrier = nullptr;
    thread.cluster_phase = 0;
    thread.async_copies.clear();
    thread.async_group = 0;
    thread.fenced = false;
    thread.seen_atomics.clear();
  }
}

void Machine::finish_block(Block& block) {
  Text<200> damage;
  block.shared.finish(damage);
  if (fault_text[0] != 0 || damage.length == 0) return;
  snprintf(fault_text, sizeof(fault_text), "kernel %s, block %ld: %s", kernel, block.index,
           damage.chars);
}

std::string Machine::run_launch() {
  adopt_host(host);
  fault_text[0] = 0;
  deadlock = false;
  set_up();
  end_token = sanitizer::launch_token();
  run_clusters();
  for (const Thread& thread : threads) {  // those that a fault has cut off too
    const sanitizer::ActAs other(thread.fiber->race_clock);
    sanitizer::release(end_token);
  }
  sanitizer::acquire(end_token);
  if (fault_text[0] == 0) return "";
  std::fill(ready_warps.begin(), ready_warps.end(), 0);
  fibers.prepare_all(run_threads);
  return fault_text + (deadlock ? list_waiters() : "");
}

}  // namespace fastkd::emulator
