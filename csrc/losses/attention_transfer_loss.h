// SPDX-License-Identifier: Apache-2.0
// Attention transfer: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017,
// arXiv:1612.03928, section 3.1, in the form of the authors' code.
//
//   Q = mean over channels of |x|^p            [samples, positions]
//   A = Q / max(|Q|, 1e-12)                    2-norm over a sample's positions
//   loss = sum (or mean) of (A_student - A_teacher)^2
//   dloss/dQ = 2 (D - A sum(D A)) / |Q|        D = A_student - A_teacher; without sum(D A) where
//                                              the floor replaces |Q|, which then does not move
//   dloss/dx = dloss/dQ p |x|^(p-1) sign(x) / channels      0 where x is 0, for every p
//
// |x|^p of large values overflows to inf, and an infinite Q makes its sample's A NaN. The formulas
// of positions are in double: the norms of float32 maps, and the squares in them, stay in range.
#pragma once

#include "core/math.h"

namespace fastkd {

// ---- |x|^p of features: value = |x|^p; slope = |x|^(p-1) sign(x), so that p is left to scale ----
//
// V is a float or cpu::Vec (cpu/vec_power.h has the same functions on it). kLong: so many
// instructions that code for each of many elements is too much.

FASTKD_HOST_DEVICE float magnitude(float x) { return ::fabsf(x); }
FASTKD_HOST_DEVICE float with_sign_of(float magnitude, float x) {
  return ::copysignf(magnitude, x);
}

// An exponent, also in two parts: a product of `high` and a float's binary exponent is exact.
struct Exponent {
  float value, high, low;
  explicit FASTKD_HOST_DEVICE Exponent(double p) : value(static_cast<float>(p)) {
    high = to_16_bits(value);
    low = static_cast<float>(p - static_cast<double>(high));
  }

 private:
  // Of the 24 that a float has.
  static FASTKD_HOST_DEVICE float to_16_bits(float x) {
    const float shifted = x * 257.0f;  // Veltkamp's split
    return shifted - (shifted - x);
  }
};

// a^exponent for a >= 0; 0 at 0, whatever the exponent.
FASTKD_HOST_DEVICE float power(float a, const Exponent& exponent) {
  return zero_where_zero(a, ::powf(a, exponent.value));
}

struct FirstPower {
  static constexpr bool kLong = false;
  template <class V>
  FASTKD_HOST_DEVICE V value(V x) const {
    return magnitude(x);
  }
  template <class V>
  FASTKD_HOST_DEVICE V slope(V x) const {
    return zero_where_zero(x, with_sign_of(V(1.0f), x));
  }
};

struct SecondPower {
  static constexpr bool kLong = false;
  template <class V>
  FASTKD_HOST_DEVICE V value(V x) const {
    return x * x;
  }
  template <class V>
  FASTKD_HOST_DEVICE V slope(V x) const {
    return x;
  }
};

struct ThirdPower {
  static constexpr bool kLong = false;
  template <class V>
  FASTKD_HOST_DEVICE V value(V x) const {
    return x * x * magnitude(x);
  }
  template <class V>
  FASTKD_HOST_DEVICE V slope(V x) const {
    return x * magnitude(x);
  }
};

struct FourthPower {
  static constexpr bool kLong = false;
  template <class V>
  FASTKD_HOST_DEVICE V value(V x) const {
    const V square = x * x;
    return square * square;
  }
  template <class V>
  FASTKD_HOST_DEVICE V slope(V x) const {
    return x * x * x;
  }
};

struct AnyPower {
  static constexpr bool kLong = true;
  Exponent of_value, of_slope;
  explicit FASTKD_HOST_DEVICE AnyPower(double p) : of_value(p), of_slope(p - 1.0) {}

  template <class V>
  FASTKD_HOST_DEVICE V value(V x) const {
    return power(magnitude(x), of_value);
  }
  template <class V>
  FASTKD_HOST_DEVICE V slope(V x) const {
    return with_sign_of(power(magnitude(x), of_slope), x);
  }
};

// p of 1, 2, 3 or 4 that is only known when a kernel runs, where a kernel for each is too many.
struct WholePower {
  static constexpr bool kLong = false;
  int p;

  template <class V>
  FASTKD_HOST_DEVICE V value(V x) const {
    const V a = magnitude(x);
    return up_to_fourth(a, a, p);
  }
  template <class V>
  FASTKD_HOST_DEVICE V slope(V x) const {
    const V a = magnitude(x);
    return zero_where_zero(x, with_sign_of(up_to_fourth(V(1.0f), a, p), x));
  }

 private:
  // start a^(p-1)
  template <class V>
  static FASTKD_HOST_DEVICE V up_to_fourth(V start, V a, int p) {
    V product = start;
    if (p >= 2) product = product * a;
    if (p >= 3) product = product * a;
    if (p >= 4) product = product * a;
    return product;
  }
};

// Any p that is only known when a kernel runs.
struct RunTimePower {
  WholePower whole;  // p of 0: it is not whole
  AnyPower any;

  explicit FASTKD_HOST_DEVICE RunTimePower(double p)
      : whole{p == 1.0 || p == 2.0 || p == 3.0 || p == 4.0 ? static_cast<int>(p) : 0}, any(p) {}
};

// run(power) with a functor. Of a RunTimePower it is found by a branch that all threads take alike.
template <class Power, class Run>
FASTKD_HOST_DEVICE void with_functor(const Power& power, Run&& run) {
  run(power);
}
template <class Run>
FASTKD_HOST_DEVICE void with_functor(const RunTimePower& power, Run&& run) {
  if (power.whole.p != 0) {
    run(power.whole);
  } else {
    run(power.any);
  }
}

// run(power) with the functor of p alone: what a kernel multiplies is known when it is compiled.
template <class Run>
inline void with_power(double p, Run&& run) {
  if (p == 1.0) return run(FirstPower());
  if (p == 2.0) return run(SecondPower());
  if (p == 3.0) return run(ThirdPower());
  if (p == 4.0) return run(FourthPower());
  run(AnyPower(p));
}

// run(power) with a functor for p = 2, which everybody uses, else with a RunTimePower.
template <class Run>
inline void with_two_or_any(double p, Run&& run) {
  if (p == 2.0) return run(SecondPower());
  run(RunTimePower(p));
}

// What grad_loss * map_grad * slope lacks of the gradient.
FASTKD_HOST_DEVICE double slope_scale(double p, int64_t channels) {
  return p / static_cast<double>(channels);
}

// ---- a sample's maps; sums run over its positions ----

// 1 / count of all positions, or 1.
FASTKD_HOST_DEVICE double attention_scale(bool mean, int64_t samples, int64_t positions) {
  const double count = static_cast<double>(samples) * static_cast<double>(positions);
  return mean && count > 0.0 ? 1.0 / count : 1.0;
}

class AttentionPair {
 public:
  FASTKD_HOST_DEVICE AttentionPair(double student_square_sum, double teacher_square_sum)
      : student_norm_(floored(::sqrt(student_square_sum))),
        teacher_norm_(floored(::sqrt(teacher_square_sum))),
        norm_moves_(!(::sqrt(student_square_sum) < kNormFloor)) {}

  FASTKD_HOST_DEVICE double student(float q) const {
    return static_cast<double>(q) / student_norm_;
  }
  FASTKD_HOST_DEVICE double teacher(float q) const {
    return static_cast<double>(q) / teacher_norm_;
  }

  // D, whose squares are the loss.
  FASTKD_HOST_DEVICE double difference(float student_q, float teacher_q) const {
    return student(student_q) - teacher(teacher_q);
  }

  // dloss/dQ of the student; dot = sum(D A).
  FASTKD_HOST_DEVICE float gradient(float student_q, float teacher_q, double dot,
                                    double scale) const {
    const double a = student(student_q);
    const double along = norm_moves_ ? a * dot : 0.0;
    const double across = (a - teacher(teacher_q)) - along;
    return static_cast<float>(2.0 * scale / student_norm_ * across);
  }

 private:
  static constexpr double kNormFloor = 1e-12;  // of torch.nn.functional.normalize

  static FASTKD_HOST_DEVICE double floored(double norm) {  // NaN stays
    return norm < kNormFloor ? kNormFloor : norm;
  }

  double student_norm_, teacher_norm_;
  bool norm_moves_;
};

}  // namespace fastkd
