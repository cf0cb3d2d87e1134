// SPDX-License-Identifier: Apache-2.0
// CUDA's own names for g++. Only what fastkd's kernels use.
#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "emulator/device_calls.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// The emulator sets these at every switch of threads.
inline uint3 threadIdx{};
inline uint3 blockIdx{};
inline uint3 blockDim{};
inline uint3 gridDim{};

inline void __syncthreads(fastkd::emulator::Site site = fastkd::emulator::Site::current()) {
  fastkd::emulator::sync_block(site);
}

inline void __syncwarp(uint32_t mask = 0xffffffffu,
                       fastkd::emulator::Site site = fastkd::emulator::Site::current()) {
  fastkd::emulator::sync_warp(mask, site);
}

namespace fastkd::emulator {

template <class T>
inline T shuffle_value(Wait kind, uint32_t mask, T value, int operand, int width, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "shuffles move 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shuffle(kind, mask, bits, operand, width, site);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace fastkd::emulator

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int lane, int width = 32,
                     fastkd::emulator::Site site = fastkd::emulator::Site::current()) {
  using fastkd::emulator::Wait;
  return fastkd::emulator::shuffle_value(Wait::kShuffle, mask, value, lane, width, site);
}

template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                        fastkd::emulator::Site site = fastkd::emulator::Site::current()) {
  using fastkd::emulator::Wait;
  return fastkd::emulator::shuffle_value(Wait::kShuffleUp, mask, value, static_cast<int>(delta),
                                         width, site);
}

template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                          fastkd::emulator::Site site = fastkd::emulator::Site::current()) {
  using fastkd::emulator::Wait;
  return fastkd::emulator::shuffle_value(Wait::kShuffleDown, mask, value, static_cast<int>(delta),
                                         width, site);
}

template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32,
                         fastkd::emulator::Site site = fastkd::emulator::Site::current()) {
  using fastkd::emulator::Wait;
  return fastkd::emulator::shuffle_value(Wait::kShuffleXor, mask, value, lane_mask, width, site);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              fastkd::emulator::Site site = fastkd::emulator::Site::current()) {
  return fastkd::emulator::ballot(fastkd::emulator::Wait::kBallot, mask, predicate != 0, site);
}

inline int __any_sync(uint32_t mask, int predicate,
                      fastkd::emulator::Site site = fastkd::emulator::Site::current()) {
  return fastkd::emulator::ballot(fastkd::emulator::Wait::kAny, mask, predicate != 0, site) != 0;
}

inline int __all_sync(uint32_t mask, int predicate,
                      fastkd::emulator::Site site = fastkd::emulator::Site::current()) {
  return fastkd::emulator::ballot(fastkd::emulator::Wait::kAll, mask, predicate != 0, site) == mask;
}

inline void __threadfence() { fastkd::emulator::fence(); }
inline void __threadfence_block() { fastkd::emulator::fence(); }

// Relaxed, as on the device.
template <class T>
inline T atomicAdd(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  fastkd::emulator::before_atomic(address);
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

template <class T>
inline T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  fastkd::emulator::before_atomic(address);
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

inline uint32_t atomicOr(uint32_t* address, uint32_t bits) {
  fastkd::emulator::before_atomic(address);
  return __atomic_fetch_or(address, bits, __ATOMIC_RELAXED);
}

template <class T>
inline T atomicMax(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  fastkd::emulator::before_atomic(address);
  T before = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (before < value && !__atomic_compare_exchange_n(address, &before, value, false,
                                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}
