// SPDX-License-Identifier: Apache-2.0
// The element types of logits: storage, scalar conversion, and the one visitor that turns a
// run-time dtype into a type.
#pragma once

#include <string.h>

#include "core/portable.h"

namespace fastkd {

// The values are the codes that fastkd/_native.py sends.
enum class Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FASTKD_HOST_DEVICE int64_t element_size(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

template <class To, class From>
FASTKD_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

FASTKD_HOST_DEVICE float to_float(float x) { return x; }
FASTKD_HOST_DEVICE float to_float(BFloat16 x) {
  return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
FASTKD_HOST_DEVICE float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));
  if (magnitude < 0x0400u) {  // subnormal: an integer multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign != 0 ? -value : value;
  }
  return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

template <class T>
FASTKD_HOST_DEVICE T from_float(float x);

template <>
FASTKD_HOST_DEVICE float from_float<float>(float x) {
  return x;
}

// Round to nearest even; NaN stays NaN.
template <>
FASTKD_HOST_DEVICE BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x0040u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
FASTKD_HOST_DEVICE Float16 from_float<Float16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0x0fffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

template <class T>
struct Type {
  using type = T;
};

// visit(dtype, [&](auto type) { using T = typename decltype(type)::type; ... })
template <class Visitor>
inline void visit(Dtype dtype, Visitor&& visitor) {
  switch (dtype) {
    case Dtype::kFloat32:
      return visitor(Type<float>{});
    case Dtype::kBFloat16:
      return visitor(Type<BFloat16>{});
    case Dtype::kFloat16:
      return visitor(Type<Float16>{});
  }
}

}  // namespace fastkd
