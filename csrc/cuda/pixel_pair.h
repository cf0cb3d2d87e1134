// SPDX-License-Identifier: Apache-2.0
// Two neighbouring pixels of a map whose classes are strided, class by class.
#pragma once

#include "cuda/logit_reader.h"

namespace fastkd::cuda {

__device__ __forceinline__ float pixel(float2 pair, int i) { return i == 0 ? pair.x : pair.y; }

// Two neighbouring elements of a type that the call may only know when it runs.
template <class T>
class PixelPair {
 public:
  // `both`: the second pixel is there. `together`: the pair may be one access.
  __device__ __forceinline__ PixelPair(const LogitView& view, int64_t outer, int64_t inner,
                                       bool both, bool together)
      : data_(view.template at<T>(outer, inner)),
        step_(view.stride_class),
        both_(both),
        together_(together && both) {}

  __device__ __forceinline__ float2 read(int64_t c) const {
    const T* const p = data_ + c * step_;
    if (together_) {
      if constexpr (sizeof(T) == 4) return *reinterpret_cast<const float2*>(p);
      if constexpr (sizeof(T) == 2) return unpack_pair<T>(*reinterpret_cast<const uint32_t*>(p));
    }
    const float low = widen(p[0]);
    return {low, both_ ? widen(p[1]) : low};
  }

  __device__ __forceinline__ void write(int64_t c, float2 x) const {
    T* const p = data_ + c * step_;
    if (together_) {
      if constexpr (sizeof(T) == 4) *reinterpret_cast<float2*>(p) = x;
      if constexpr (sizeof(T) == 2) *reinterpret_cast<uint32_t*>(p) = pack_pair<T>(x.x, x.y);
    } else {
      p[0] = narrow<T>(x.x);
      if (both_) p[1] = narrow<T>(x.y);
    }
  }

 private:
  T* data_;
  int64_t step_;
  bool both_, together_;
};

template <>
class PixelPair<AnyType> {
 public:
  __device__ __forceinline__ PixelPair(const LogitView& view, int64_t outer, int64_t inner,
                                       bool both, bool together)
      : view_(view), outer_(outer), inner_(inner), both_(both), together_(together) {}

  __device__ __forceinline__ float2 read(int64_t c) const {
    if (view_.dtype == Dtype::kFloat32) return as<float>().read(c);
    if (view_.dtype == Dtype::kBFloat16) return as<BFloat16>().read(c);
    return as<Float16>().read(c);
  }

  __device__ __forceinline__ void write(int64_t c, float2 x) const {
    if (view_.dtype == Dtype::kFloat32) {
      as<float>().write(c, x);
    } else if (view_.dtype == Dtype::kBFloat16) {
      as<BFloat16>().write(c, x);
    } else {
      as<Float16>().write(c, x);
    }
  }

 private:
  template <class T>
  __device__ __forceinline__ PixelPair<T> as() const {
    return {view_, outer_, inner_, both_, together_};
  }

  const LogitView& view_;
  int64_t outer_, inner_;
  bool both_, together_;
};

}  // namespace fastkd::cuda
