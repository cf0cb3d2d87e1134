// SPDX-License-Identifier: Apache-2.0
// The one header that knows nvcc from g++: what kernels use of the machine, and nothing else.
//
// Under g++ the emulator (csrc/emulator) supplies CUDA's own names and the twins of the inline
// assembly below, so the same kernels run on a CPU (tests only).
#pragma once

#include <type_traits>

#include "core/dtype.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include "emulator/cuda.h"
#endif

namespace fastkd::cuda {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

// Whether the chip compiled for has clusters and bulk copies. Kernels that need them are empty
// elsewhere, and plan() never picks them there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasClusters = false;
#else
constexpr bool kHasClusters = true;
#endif

// ---- who runs: blocks and grids are one-dimensional ----

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int block_threads() { return static_cast<int>(blockDim.x); }
__device__ __forceinline__ int64_t block_index() { return blockIdx.x; }
__device__ __forceinline__ int64_t grid_blocks() { return gridDim.x; }

// ---- indices ----

struct Quotient {
  int64_t whole, rest;
};

// a / b, neither above `most`: 64-bit division costs three times as much.
__device__ __forceinline__ Quotient divide(int64_t a, int64_t b, int64_t most) {
  if (most > INT32_MAX) return {a / b, a % b};
  const uint32_t small = static_cast<uint32_t>(a), by = static_cast<uint32_t>(b);
  return {small / by, small % by};
}

// ---- memory, 16 bytes at a time ----

struct alignas(16) Words {
  uint32_t word[4];
};

// `data` is aligned to 16 bytes.
__device__ __forceinline__ Words load_words(const void* data) {
#if !defined(__CUDACC__)
  emulator::check_aligned(data, 16);
#endif
  const uint4 v = *static_cast<const uint4*>(data);
  return {{v.x, v.y, v.z, v.w}};
}

__device__ __forceinline__ void store_words(void* data, const Words& words) {
#if !defined(__CUDACC__)
  emulator::check_aligned(data, 16);
#endif
  *static_cast<uint4*>(data) = uint4{words.word[0], words.word[1], words.word[2], words.word[3]};
}

// Words that the compiler takes for new, so that it computes from them again in place of keeping
// what it computed before: registers are scarcer than instructions.
__device__ __forceinline__ void make_new(Words& words) {
#if defined(__CUDACC__)
  uint32_t (&w)[4] = words.word;
  asm volatile("" : "+r"(w[0]), "+r"(w[1]), "+r"(w[2]), "+r"(w[3]));
#else
  (void)words;
#endif
}

__device__ __forceinline__ void make_new(float2& pair) {
#if defined(__CUDACC__)
  asm volatile("" : "+f"(pair.x), "+f"(pair.y));
#else
  (void)pair;
#endif
}

// ---- two halves in one word ----

template <class T>
__device__ __forceinline__ float2 unpack_pair(uint32_t word);

template <>
__device__ __forceinline__ float2 unpack_pair<BFloat16>(uint32_t word) {
  return {bit_cast<float>(word << 16), bit_cast<float>(word & 0xffff0000u)};
}

template <>
__device__ __forceinline__ float2 unpack_pair<Float16>(uint32_t word) {
#if defined(__CUDACC__)
  return __half22float2(bit_cast<__half2>(word));
#else
  return {to_float(Float16{static_cast<uint16_t>(word)}),
          to_float(Float16{static_cast<uint16_t>(word >> 16)})};
#endif
}

template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack_pair<BFloat16>(float low, float high) {
#if defined(__CUDACC__)
  return bit_cast<uint32_t>(__floats2bfloat162_rn(low, high));
#else
  return from_float<BFloat16>(low).bits | static_cast<uint32_t>(from_float<BFloat16>(high).bits)
                                              << 16;
#endif
}

template <>
__device__ __forceinline__ uint32_t pack_pair<Float16>(float low, float high) {
#if defined(__CUDACC__)
  return bit_cast<uint32_t>(__floats2half2_rn(low, high));
#else
  return from_float<Float16>(low).bits | static_cast<uint32_t>(from_float<Float16>(high).bits)
                                             << 16;
#endif
}

// The larger of each half; a NaN loses.
template <class T>
__device__ __forceinline__ uint32_t max_pair(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, BFloat16>) {
    return bit_cast<uint32_t>(__hmax2(bit_cast<__nv_bfloat162>(a), bit_cast<__nv_bfloat162>(b)));
  } else {
    return bit_cast<uint32_t>(__hmax2(bit_cast<__half2>(a), bit_cast<__half2>(b)));
  }
#else
  const float2 x = unpack_pair<T>(a), y = unpack_pair<T>(b);
  const auto larger = [](float u, float v) { return u > v || v != v ? u : v; };
  return pack_pair<T>(larger(x.x, y.x), larger(x.y, y.y));
#endif
}

__device__ __forceinline__ float widen(float x) { return x; }
template <class T>
__device__ __forceinline__ float widen(T x) {
  return unpack_pair<T>(x.bits).x;
}

template <class T>
__device__ __forceinline__ T narrow(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return T{static_cast<uint16_t>(pack_pair<T>(x, 0.0f))};
  }
}

// The 32 bits that start `bits` (0 or 16) into high:low.
__device__ __forceinline__ uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t bits) {
#if defined(__CUDACC__)
  return __funnelshift_r(low, high, bits);
#else
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32) | low) >> bits);
#endif
}

// ---- shared memory ----

__device__ __forceinline__ char* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) char arena[];
  return arena;
#else
  return emulator::shared_memory();
#endif
}

// ---- clusters: blocks that read and write each other's shared memory (sm_90 and later) ----

#if !defined(__CUDACC__)

__device__ __forceinline__ void arrive_cluster_relaxed() { emulator::arrive_cluster(); }
using emulator::arrive_cluster;
using emulator::cluster_rank;
using emulator::peer_shared;
using emulator::wait_cluster;

#else

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// Says that this thread runs, and nothing of what it wrote.
__device__ __forceinline__ void arrive_cluster_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;");
}
// All threads of the cluster arrive, then wait; what they wrote before arriving is seen after
// waiting.
__device__ __forceinline__ void arrive_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The same place in the shared memory of another block of the cluster.
template <class T>
__device__ __forceinline__ T* peer_shared(T* mine, int rank) {
  uint64_t theirs;
  asm volatile("mapa.u64 %0, %1, %2;"
               : "=l"(theirs)
               : "l"(reinterpret_cast<uint64_t>(mine)), "r"(rank));
  return reinterpret_cast<T*>(theirs);
}

#endif

// ---- bulk copies: the copy engine fills shared memory and signals a barrier (sm_90 and later)
// ----

#if !defined(__CUDACC__)

using emulator::bulk_copy;
using emulator::copy_barrier_expect;
using emulator::copy_barrier_init;
using emulator::copy_barrier_wait;

#else

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// One thread makes the barrier; a block barrier must follow before others use it.
__device__ __forceinline__ void copy_barrier_init(uint64_t* barrier) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\n"
      " fence.mbarrier_init.release.cluster;\n"
      " fence.proxy.async.shared::cta;"  // the copy engine sees it too
      :
      : "r"(shared_address(barrier))
      : "memory");
}

// The one arrival of this phase, with the bytes that the copies will bring.
__device__ __forceinline__ void copy_barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits for the phase of this parity; what the copies wrote is then visible.
__device__ __forceinline__ void copy_barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      " .reg .pred done;\n"
      "waiting:\n"
      " mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      " @!done bra waiting;\n"
      "}"
      :
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
}

// `bytes`, source and destination are multiples of 16.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, uint32_t bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      :
      : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes),
        "r"(shared_address(barrier))
      : "memory");
}

#endif

}  // namespace fastkd::cuda
