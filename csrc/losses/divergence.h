// SPDX-License-Identifier: Apache-2.0
// Divergences of a teacher's p = softmax(t / T) from a student's q = softmax(s / T), for kd_loss.h.
//
//   forward KL: sum of p log(p / q)
//     dD/ds = (q - p) / T
//   reverse KL: sum of q log(q / p)
//     dD/ds = q (u - mean of u) / T^2, u = s - t
//   Jensen-Shannon: sum of b p log(p / m) + (1 - b) q log(q / m), m = b p + (1 - b) q, b = beta
//     dD/ds = (1 - b) q (v - mean of v) / T, v = log(q / m)
//   total variation: sum of |p - q| / 2
//     dD/ds = q (v - mean of v) / 2T, v = sign(q - p)
// with means under q. (Reverse KL: Gu et al. 2023, arXiv:2306.08543; generalised Jensen-Shannon:
// Agarwal et al. 2023, arXiv:2306.13649; total variation: Wen et al. 2023, arXiv:2307.15190.)
//
// The KLs are known from sums over the logits. The others need p and q themselves: they refine, in
// a second visit to what was kept of each class, once the row's sums are there.
//
// Of each class kKept values are kept: e_s, the student's exponential; e_t, in whose place `take`
// or `refine` leave what the slope is made of (kKeepsSlope): u, v, or on which side a class is; and
// for Jensen-Shannon the difference of the logits.
#pragma once

#include "core/math.h"

namespace fastkd {

enum class Divergence : int32_t {
  kForwardKl = 0,
  kReverseKl = 1,
  kJensenShannon = 2,
  kTotalVariation = 3,
  kDecoupled = 4,  // forward KL of all classes but the label's, and another: decoupled_kd_loss.h
};

struct DivergenceParams {
  Divergence kind;
  float beta, rest;  // of Jensen-Shannon: the weights of p and q in the mixture, rest = 1 - beta
  float inverse_t;   // 1 / T
};

// Sums over classes, kSums of them. Of the KLs: [0] = sum of e (log-ratio, in logits relative to
// the maxima); of Jensen-Shannon: [0] = sum of p log(p / m), [1] = sum of q v; of total variation:
// [0] = the divergence, [1] and [2] = the masses of q where it is larger and smaller than p.

// How a set of classes lies below the maxima that its sums are moved to.
template <class V>
struct Move {
  V below_student, below_teacher;  // logits, <= 0
  V scale_student, scale_teacher;  // exponentials of these over T
};

// From exponentials to probabilities, 1 / sum each; and log(p / q) where the logits are equal.
template <class V>
struct Normalizer {
  V student, teacher, log_ratio;
};

// Two factors of a row, from which each class has its gradient: e_s * student - e_t * kept, or
// e_s * slope(student, kept, what was kept), so that no digits go where a slope is near its mean.
template <class V>
struct SoftScale {
  V student, kept;
};

// Slopes v of which the mean under q is taken off. `factor` = dD/ds over q (v - mean).
struct Centred {
  static constexpr bool kKeepsSlope = true;

  template <class V>
  static FASTKD_HOST_DEVICE V slope(V student, V kept, const V* value) {
    return fma(value[1], kept, student);
  }

 protected:
  template <class V>
  static FASTKD_HOST_DEVICE SoftScale<V> scale_of(V factor, V mean, V sum_student) {
    const V kept = factor / sum_student;
    return {V(0.0f) - kept * mean, kept};
  }
};

struct ForwardKl {
  static constexpr bool kRefines = false, kKeepsSlope = false;
  static constexpr int kSums = 1, kKept = 2;

  // p = 0 adds 0 whatever q is: (-inf) - (-inf) must not reach the sum.
  template <class V>
  static FASTKD_HOST_DEVICE void take(const DivergenceParams&, V* sums, V* value, V s, V t) {
    sums[0] = fma(value[1], zero_where_zero(value[1], t - s), sums[0]);
  }
  // A part whose probabilities vanish beside the maximum adds 0, even where its sum is infinite.
  template <class V>
  static FASTKD_HOST_DEVICE void merge(const DivergenceParams&, V* out, const V* part,
                                       const Move<V>& move, V, V sum_teacher) {
    const V moved =
        fma(move.below_teacher - move.below_student, sum_teacher, part[0] * move.scale_teacher);
    out[0] = out[0] + zero_where_zero(sum_teacher, moved);
  }
  template <class V>
  static FASTKD_HOST_DEVICE void refine(const DivergenceParams&, V*, const Normalizer<V>&, V*) {}
  template <class V>
  static FASTKD_HOST_DEVICE V value(const DivergenceParams& d, const V* sums, V sum_student,
                                    V sum_teacher) {
    return fma(sums[0], V(d.inverse_t) / sum_teacher, log(sum_student / sum_teacher));
  }
  // `soft` = weight of the row / T.
  template <class V>
  static FASTKD_HOST_DEVICE SoftScale<V> scale(const DivergenceParams&, const V*, V soft,
                                               V sum_student, V sum_teacher) {
    return {soft / sum_student, soft / sum_teacher};
  }
  template <class V>
  static FASTKD_HOST_DEVICE SoftScale<V> for_part(const DivergenceParams&, const SoftScale<V>& row,
                                                  const Move<V>& move) {
    return {row.student * move.scale_student, row.kept * move.scale_teacher};
  }
  // Largest |T dD/ds|.
  static FASTKD_HOST_DEVICE double grad_bound(const DivergenceParams&) { return 1.0; }
};

struct ReverseKl : Centred {
  static constexpr bool kRefines = false;
  static constexpr int kSums = 1, kKept = 2;

  template <class V>
  static FASTKD_HOST_DEVICE void take(const DivergenceParams&, V* sums, V* value, V s, V t) {
    value[1] = zero_where_zero(value[0], s - t);
    sums[0] = fma(value[0], value[1], sums[0]);
  }
  template <class V>
  static FASTKD_HOST_DEVICE void merge(const DivergenceParams&, V* out, const V* part,
                                       const Move<V>& move, V sum_student, V) {
    const V moved =
        fma(move.below_student - move.below_teacher, sum_student, part[0] * move.scale_student);
    out[0] = out[0] + zero_where_zero(sum_student, moved);
  }
  template <class V>
  static FASTKD_HOST_DEVICE void refine(const DivergenceParams&, V*, const Normalizer<V>&, V*) {}
  template <class V>
  static FASTKD_HOST_DEVICE V value(const DivergenceParams& d, const V* sums, V sum_student,
                                    V sum_teacher) {
    return fma(sums[0], V(d.inverse_t) / sum_student, log(sum_teacher / sum_student));
  }
  template <class V>
  static FASTKD_HOST_DEVICE SoftScale<V> scale(const DivergenceParams& d, const V* sums, V soft,
                                               V sum_student, V) {
    return scale_of(soft * V(d.inverse_t), sums[0] / sum_student, sum_student);
  }
  // The slope is relative to the part's maxima too.
  template <class V>
  static FASTKD_HOST_DEVICE SoftScale<V> for_part(const DivergenceParams&, const SoftScale<V>& row,
                                                  const Move<V>& move) {
    const V shifted = fma(move.below_student - move.below_teacher, row.kept, row.student);
    return {zero_where_zero(move.scale_student, shifted * move.scale_student),
            row.kept * move.scale_student};
  }
  // q (1 - q) |u - mean of the others|: a quarter of what float16 logits can differ by leaves room
  // below float16's largest number after the prescale.
  static FASTKD_HOST_DEVICE double grad_bound(const DivergenceParams& d) {
    return 16384.0 * static_cast<double>(d.inverse_t);
  }
};

template <int kSums_>
struct Refining {
  static constexpr bool kRefines = true;
  static constexpr int kSums = kSums_;

  template <class V>
  static FASTKD_HOST_DEVICE void merge(const DivergenceParams&, V* out, const V* part,
                                       const Move<V>&, V, V) {
    for (int i = 0; i < kSums; ++i) out[i] = out[i] + part[i];
  }
  template <class V>
  static FASTKD_HOST_DEVICE SoftScale<V> for_part(const DivergenceParams&, const SoftScale<V>& row,
                                                  const Move<V>& move) {
    return {row.student * move.scale_student, row.kept * move.scale_student};
  }
  static FASTKD_HOST_DEVICE double grad_bound(const DivergenceParams&) { return 1.0; }
};

struct JensenShannon : Refining<2>, Centred {
  static constexpr int kKept = 3;

  template <class V>
  static FASTKD_HOST_DEVICE void take(const DivergenceParams&, V*, V* value, V s, V t) {
    value[2] = t - s;
  }
  // One logarithm serves both terms: that of whichever side m has more of, over m; the logits'
  // difference tells how far the other is from it. What cancels there weighs little, for any beta.
  // p = q gives exactly 0.
  template <class V>
  static FASTKD_HOST_DEVICE void refine(const DivergenceParams& d, V* sums,
                                        const Normalizer<V>& normalizer, V* value) {
    const V zero(0.0f);
    const V p = value[1] * normalizer.teacher;
    const V q = value[0] * normalizer.student;
    const V mixture = d.beta < d.rest ? fma(V(d.beta), p - q, q) : fma(V(d.rest), q - p, p);
    // Not below the normal numbers, where logarithms have no digits; what is there adds nothing.
    const V m = max(V(FLT_MIN), mixture);
    const V log_pq = fma(value[2], V(d.inverse_t), normalizer.log_ratio);
    const V bound = q * V(d.rest / d.beta);  // above it, p is most of m
    const V leading = log_ratio(where_less(p, bound, q, p), m);
    // A class that one side lacks has an infinite difference.
    const V u = zero_where_zero(p, leading + where_less(p, bound, log_pq, zero));
    const V v = zero_where_zero(q, leading - where_less(p, bound, zero, log_pq));
    sums[0] = fma(p, u, sums[0]);
    sums[1] = fma(q, v, sums[1]);
    value[1] = v;
  }
  template <class V>
  static FASTKD_HOST_DEVICE V value(const DivergenceParams& d, const V* sums, V, V) {
    return fma(V(d.beta), sums[0], V(d.rest) * sums[1]);
  }
  template <class V>
  static FASTKD_HOST_DEVICE SoftScale<V> scale(const DivergenceParams& d, const V* sums, V soft,
                                               V sum_student, V) {
    return scale_of(soft * V(d.rest), sums[1], sum_student);
  }
};

// v - mean of v is twice the mass of q on the other side: summed by itself, it keeps its digits
// where nearly all of q lies on one side. What is kept of a class: 1 on the side where q is the
// larger, 0 on the other, 1/2 where p = q.
struct TotalVariation : Refining<3> {
  static constexpr int kKept = 2;
  static constexpr bool kKeepsSlope = true;

  template <class V>
  static FASTKD_HOST_DEVICE void take(const DivergenceParams&, V*, V*, V, V) {}
  template <class V>
  static FASTKD_HOST_DEVICE void refine(const DivergenceParams&, V* sums,
                                        const Normalizer<V>& normalizer, V* value) {
    const V q = value[0] * normalizer.student;
    const V difference = q - value[1] * normalizer.teacher;
    const V half(0.5f), half_v = half * sign(difference);
    sums[0] = fma(difference, half_v, sums[0]);
    sums[1] = fma(q, half + half_v, sums[1]);
    sums[2] = fma(q, half - half_v, sums[2]);
    value[1] = half + half_v;
  }
  template <class V>
  static FASTKD_HOST_DEVICE V value(const DivergenceParams&, const V* sums, V, V) {
    return sums[0];
  }
  // Both masses over their sum, which is 1 up to the rounding that they share.
  template <class V>
  static FASTKD_HOST_DEVICE SoftScale<V> scale(const DivergenceParams&, const V* sums, V soft,
                                               V sum_student, V) {
    const V unit = soft / (sum_student * (sums[1] + sums[2]));
    return {unit * sums[1], unit * sums[2]};
  }
  template <class V>
  static FASTKD_HOST_DEVICE V slope(V student, V kept, const V* value) {
    return fma(value[1], kept, (value[1] - V(1.0f)) * student);
  }
};

// Those that refine, one of them chosen at run time: for devices whose code is large.
struct AnyRefining : Refining<3> {
  static constexpr int kKept = 3;
  static constexpr bool kKeepsSlope = true;

  template <class V>
  static FASTKD_HOST_DEVICE void take(const DivergenceParams& d, V* sums, V* value, V s, V t) {
    JensenShannon::take(d, sums, value, s, t);
  }
  template <class V>
  static FASTKD_HOST_DEVICE void refine(const DivergenceParams& d, V* sums,
                                        const Normalizer<V>& normalizer, V* value) {
    if (is_js(d)) {
      JensenShannon::refine(d, sums, normalizer, value);
      value[2] = V(1.0f);
    } else {
      TotalVariation::refine(d, sums, normalizer, value);
      value[2] = value[1] - V(1.0f);
    }
  }
  template <class V>
  static FASTKD_HOST_DEVICE V value(const DivergenceParams& d, const V* sums, V sum_student,
                                    V sum_teacher) {
    return is_js(d) ? JensenShannon::value(d, sums, sum_student, sum_teacher)
                    : TotalVariation::value(d, sums, sum_student, sum_teacher);
  }
  template <class V>
  static FASTKD_HOST_DEVICE SoftScale<V> scale(const DivergenceParams& d, const V* sums, V soft,
                                               V sum_student, V sum_teacher) {
    return is_js(d) ? JensenShannon::scale(d, sums, soft, sum_student, sum_teacher)
                    : TotalVariation::scale(d, sums, soft, sum_student, sum_teacher);
  }
  // Both slopes, by the factor of `student` that `refine` has left.
  template <class V>
  static FASTKD_HOST_DEVICE V slope(V student, V kept, const V* value) {
    return fma(value[1], kept, value[2] * student);
  }

 private:
  static FASTKD_HOST_DEVICE bool is_js(const DivergenceParams& d) {
    return d.kind == Divergence::kJensenShannon;
  }
};

}  // namespace fastkd
