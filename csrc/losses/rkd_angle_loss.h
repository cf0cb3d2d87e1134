// SPDX-License-Identifier: Apache-2.0
// Relational knowledge distillation by angles (Park et al. 2019, arXiv:1904.05068, eq. 7-9).
//
//   a_ijk = cosine of the angle at x_j between x_i and x_k
//         = (S_ij + S_kj - S_ik) / (2 d_ij d_kj),  S the squared distances, d their roots
//   loss = sum_ijk criterion(a_ijk of the student - a_ijk of the teacher) / denominator
//
// Pairs no further apart than eps have no direction: their cosines are 0 and nothing moves them. In
// one dimension cosines are -1, 0 or 1, and the gradient is 0.
//
// S of neighbours far from x_j agree in their leading digits, so S is held as high + low: high is
// a multiple of a number `grid` so coarse that sums of three are exact in float, low is the rest.
//
// Where all distances are alike, S in one float is enough ("plain"); only the CPU asks.
//
// Near pairs ask for more. Of the examples a and b, a distance d apart, each pulls every other
// with a slope of about 1 / d, and only what is left of both is true; and low has too few digits
// where distances of all sizes meet. Such batches have S, slopes and sums in double ("wide").
#pragma once

#include <type_traits>

#include "losses/criterion.h"

namespace fastkd {

// A squared distance in units of `unit`, and its inverse root.
template <class V>
struct SplitOf {
  V high, low;  // high + low = square / unit
  V inverse;    // 1 / sqrt(square / unit); 0: no direction
};
using SplitSquare = SplitOf<float>;

// The squares of one side.
struct SquareRange {
  double smallest = DBL_MAX;  // of those with a direction
  double largest = 0.0;

  // No square is smaller than `share` of the largest, and products of a few leave no float.
  FASTKD_HOST_DEVICE bool within(double share) const {
    const bool ordinary = largest == 0.0 || (largest > 1e-24 && largest < 1e24);
    return ordinary && smallest >= share * largest;
  }
};

// Whether S may be rounded to floats: cosines lose its last digit times the ratio of distances.
FASTKD_HOST_DEVICE bool allows_plain(const SquareRange& side) { return side.within(1.0 / 64); }

// Whether pairs are too near for floats: the student's would cost the gradients of other rows some
// 2^-24 of the ratio of distances, up to a hundred times that where they cancel (here 1 / 64), and
// both sides' cosines about 2^-36 of it.
FASTKD_HOST_DEVICE bool wants_wide(const SquareRange& student, const SquareRange& teacher) {
  constexpr double kStudent = 1.0 / (1 << 12), kTeacher = 1.0 / 4294967296.0;
  return !student.within(kStudent) || !teacher.within(kTeacher);
}

// How squares are split: the largest becomes at most 1.
struct SquareGrid {
  double unit;  // a power of two
  double eps;   // of the norms

  // Adding it rounds a double to a multiple of 2^-22: three times 2^22 is exact in float.
  static constexpr double kRounder = 1610612736.0;  // 1.5 * 2^(52 - 22)

  static FASTKD_HOST_DEVICE SquareGrid covering(double largest_square, double eps) {
    int exponent = 0;
    if (largest_square > 0.0 && largest_square <= DBL_MAX) ::frexp(largest_square, &exponent);
    return {::ldexp(1.0, exponent), eps};
  }

  // D is a double, or lanes of doubles.
  template <class D>
  FASTKD_HOST_DEVICE auto split(D square) const {
    const D scaled = square * D(1.0 / unit);
    const D high = (scaled + D(kRounder)) - D(kRounder);
    const auto single = to_single(scaled);
    using V = std::remove_const_t<decltype(single)>;
    return SplitOf<V>{to_single(high), to_single(scaled - high), inverse(single)};
  }

  // V is a float, or lanes of floats.
  template <class V>
  FASTKD_HOST_DEVICE V inverse(V scaled) const {
    const V nothing = V(static_cast<float>(eps * eps / unit));
    return zero_unless_above(nothing, scaled, V(1.0f) / sqrt(scaled));
  }

  // The inverse root of a wide square, itself a float: an error in it is the same wherever it
  // counts. Pairs nearer than 1e-37 of the largest distance have no direction.
  template <class D>
  FASTKD_HOST_DEVICE auto wide_inverse(D scaled) const {
    const double nothing = at_least(1e-74, eps * eps / unit);
    return to_single(zero_unless_above(D(nothing), scaled, D(1.0) / sqrt(scaled)));
  }

  // factor / unit, from dloss/dS in units of 1 / unit to dloss/dS; 0 where no pair has a direction.
  FASTKD_HOST_DEVICE double of_slopes(double factor) const {
    return unit > eps * eps ? factor / unit : 0.0;
  }
};

// One side of an angle: from the vertex to a neighbour.
template <class V>
struct Arm {
  V high, low, inverse;
};

template <class V>
struct Cosine {
  V cosine, half_inverse;  // half_inverse = 1 / (2 d_ij d_kj) = dcosine/dS of each of the sides
};

// `half`: the arm to i with inverse / 2; high_ik, low_ik: the squared distance between the ends.
template <class V>
FASTKD_HOST_DEVICE Cosine<V> cosine_at_vertex(const Arm<V>& half, const Arm<V>& k, V high_ik,
                                              V low_ik) {
  const V high = (half.high + k.high) - high_ik;  // exact
  const V low = (half.low + k.low) - low_ik;
  const V half_inverse = half.inverse * k.inverse;
  return {fma(low, half_inverse, high * half_inverse), half_inverse};
}

// One side of an angle with its square in one number, and the inverse root: plain or wide.
template <class V>
struct WholeArm {
  V square, inverse;
};

// `half`: the arm to i with inverse / 2; square_ik: between the ends.
template <class V>
FASTKD_HOST_DEVICE Cosine<V> cosine_at_vertex(const WholeArm<V>& half, const WholeArm<V>& k,
                                              V square_ik) {
  const V half_inverse = half.inverse * k.inverse;
  return {((half.square + k.square) - square_ik) * half_inverse, half_inverse};
}

// Wide distances that differ by more than 1e11 leave no digits of a cosine, but its bounds.
template <class V>
FASTKD_HOST_DEVICE Cosine<V> bounded(const Cosine<V>& cosine) {
  return {clamp(cosine.cosine, V(1.0)), cosine.half_inverse};
}

// What an angle adds, all times criterion.scale() in the end:
//   value           to the loss
//   across          to -dloss/dS_ik, and to dloss/dS_ij and dloss/dS_kj
//   along           to -dloss/dS_ij * 2 S_ij and to -dloss/dS_kj * 2 S_kj
template <class V>
struct AngleTerm {
  V value, across, along;
};

// Adds one angle, with products fused into the sums.
template <class C, class V>
FASTKD_HOST_DEVICE void add_angle_term(const C& criterion, const Cosine<V>& student,
                                       V teacher_cosine, AngleTerm<V>& sum) {
  const V difference = student.cosine - teacher_cosine;
  const V c = criterion.slope(difference);
  sum.value = criterion.add_value(sum.value, c, difference);
  sum.across = fma(c, student.half_inverse, sum.across);
  sum.along = fma(c, student.cosine, sum.along);
}

// dloss/dS of the arm from a vertex to a neighbour, in units of 1 / unit, from the sums over the
// other neighbours.
template <class V>
FASTKD_HOST_DEVICE V arm_slope(V across, V along, V inverse) {
  return across - V(0.5f) * along * inverse * inverse;
}

}  // namespace fastkd
