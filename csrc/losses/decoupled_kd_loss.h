// SPDX-License-Identifier: Apache-2.0
// Decoupled knowledge distillation (Zhao, Cui, Song, Qiu, Liang 2022, arXiv:2203.08679).
//
//   y: the label; p', q': softmax of the other classes' logits over T; p_y, q_y: of all classes'
//   loss = target_weight * KL((p_y, 1 - p_y), (q_y, 1 - q_y)) + soft_weight * KL(p', q')
//        + hard_weight * cross_entropy(s, y)
//   dloss/ds_y = target_weight * (q_y - p_y) / T + hard_weight * (softmax(s)_y - 1)
//   dloss/ds_i = (soft_weight * (q'_i - p'_i) - target_weight * (q_y - p_y) q'_i) / T
//              + hard_weight * softmax(s)_i
//
// The drivers hide the label's class: they read -inf there, so that the sums of kd_loss.h are those
// of the other classes. The label's own logits, beside these sums, give all that is left.
#pragma once

#include "losses/kd_loss.h"

namespace fastkd {

template <int kPower, bool kHard>
struct DecoupledKdLoss : KdLoss<ForwardKl, kPower, kHard> {
  using Base = KdLoss<ForwardKl, kPower, kHard>;
  template <class V>
  using State = typename Base::template State<V>;
  template <class V>
  using HardState = typename Base::template HardState<V>;
  template <class V>
  using GradScale = typename Base::template GradScale<V>;

  static constexpr bool kHasLabel = true, kHidesLabel = true;

  struct Params : Base::Params {
    float target_weight;

    explicit Params(const KdLossOptions& o) : Base::Params(o), target_weight(o.target_weight) {}
  };

  static FASTKD_HOST_DEVICE double grad_bound(const Params& p) {
    return Base::grad_bound(p) +
           static_cast<double>(p.target_weight) * static_cast<double>(p.divergence.inverse_t);
  }

  template <class V>
  static FASTKD_HOST_DEVICE V finish(const Params& p, const State<V>& others,
                                     const HardState<V>& hard_others, const Labels<V>& labels,
                                     float student_classes) {
    V loss(0.0f);
    if (p.soft_weight != 0.0f) {
      // Of a side that has other classes the sum is 1 at least. Where the teacher has none there is
      // nothing to be like; where only the student has none it lacks what it should be like.
      const V half(0.5f);
      loss = Base::soft_loss(p, others.divergence, others.sum_student, others.sum_teacher);
      loss = where_less(others.sum_student, half, V(INFINITY), loss);
      loss = where_less(others.sum_teacher, half, V(0.0f), loss);
    }
    if (p.target_weight != 0.0f) {
      const V value = label_divergence(odds_of(p, others, labels));
      loss = loss + V(p.target_weight) * clamp_below_zero(value);
    }
    if constexpr (kHard) {
      loss = loss +
             Base::hard_loss(p, with_label(hard_others, labels), labels.student, student_classes);
    }
    return loss;
  }

  template <class V>
  static FASTKD_HOST_DEVICE GradScale<V> grad_scale(const Params& p, const State<V>& others,
                                                    const HardState<V>& hard_others,
                                                    const Labels<V>& labels, V row_scale, float) {
    const V zero(0.0f);
    GradScale<V> scale{zero, zero, zero, zero, zero, zero, zero, p.squarings};
    const V soft = row_scale * V(p.soft_weight * p.divergence.inverse_t);
    V target(0.0f);
    if (p.target_weight != 0.0f) {
      target = row_scale * V(p.target_weight * p.divergence.inverse_t) *
               label_difference(odds_of(p, others, labels));
    }
    const V kept = zero_where_zero(others.sum_teacher, soft);
    scale.kept = zero_where_zero(others.sum_teacher, kept / others.sum_teacher);
    scale.student = zero_where_zero(others.sum_student, kept / others.sum_student);
    scale.pull = zero_where_zero(others.sum_student, zero - target / others.sum_student);
    scale.label = zero - target;
    if constexpr (kHard) {
      const V weight = row_scale * V(p.hard_weight);
      const HardState<V> hard = with_label(hard_others, labels);
      const V unit = weight / hard.sum;
      scale.hard = unit * exp_nonpositive(hard_others.max - hard.max);
      scale.label = fma(scale.hard, hard_others.sum, scale.label);  // 1 - softmax(s)_y
    }
    return scale;
  }

  // The label's pull comes by itself: beside the two that nearly cancel it would lose its digits.
  template <class V>
  static FASTKD_HOST_DEVICE V grad(const GradScale<V>& scale,
                                   const typename Base::template Exps<V>& exps) {
    return fma(exps.value[0], scale.pull, Base::grad(scale, exps));
  }

 private:
  // log(p_y / (1 - p_y)) of both sides, and how far the student's is above the teacher's.
  template <class V>
  struct Odds {
    V student, teacher, apart;
  };
  // Nearer than this the label's terms are series of `apart`: differences would cancel.
  static constexpr float kNear = 0.25f;

  template <class V>
  static FASTKD_HOST_DEVICE Odds<V> odds_of(const Params& p, const State<V>& others,
                                            const Labels<V>& labels) {
    const V zero(0.0f), inverse_t(p.divergence.inverse_t);
    const V student = labels.student - others.max_student;
    const V teacher = labels.teacher - others.max_teacher;
    return {fma(student, inverse_t, zero - log(others.sum_student)),
            fma(teacher, inverse_t, zero - log(others.sum_teacher)),
            fma(student - teacher, inverse_t, zero - log(others.sum_student / others.sum_teacher))};
  }

  // KL((p, r), (q, 1 - q)) of the label and the rest, p = p_y, r = 1 - p_y.
  template <class V>
  static FASTKD_HOST_DEVICE V label_divergence(const Odds<V>& odds) {
    const V zero(0.0f), most(1e30f);
    const V p = sigmoid(odds.teacher), r = sigmoid(zero - odds.teacher), d = odds.apart;
    // Seen from the side that the teacher gives less: there log(1 + e^odds) is small, with all its
    // digits. Infinite odds of the student are infinitely far, unless the teacher's are the same.
    const V side = where_less(odds.teacher, zero, V(1.0f), V(-1.0f));
    const V away = side * (odds.student - odds.teacher);
    const V less = where_less(odds.teacher, zero, p, r);
    const V far = softplus(side * odds.student) - softplus(side * odds.teacher) -
                  zero_where_zero(less, less * where_less(away, most, away, most));
    // log(1 + p (e^d - 1)) - p d: the cumulants of a coin, from the second to the sixth.
    const V v = p * r, skew = r - p;
    V near = fma(V(-30.0f) * v, fma(V(-4.0f), v, V(1.0f)), V(1.0f)) * V(1.0f / 720.0f);
    near = fma(near, d, skew * fma(V(-12.0f), v, V(1.0f)) * V(1.0f / 120.0f));
    near = fma(near, d, fma(V(-6.0f), v, V(1.0f)) * V(1.0f / 24.0f));
    near = fma(near, d, skew * V(1.0f / 6.0f));
    near = fma(near, d, V(0.5f)) * v * d * d;
    return where_less(max(zero - d, d), V(kNear), near, far);
  }

  // q_y - p_y.
  template <class V>
  static FASTKD_HOST_DEVICE V label_difference(const Odds<V>& odds) {
    const V zero(0.0f), one(1.0f);
    const V p = sigmoid(odds.teacher), r = sigmoid(zero - odds.teacher), d = odds.apart;
    // By the side that is small.
    const V far =
        where_less(odds.teacher, zero, sigmoid(odds.student) - p, r - sigmoid(zero - odds.student));
    // p r x / (1 + p x), x = e^d - 1.
    V x = fma(d, V(1.0f / 720.0f), V(1.0f / 120.0f));
    x = fma(x, d, V(1.0f / 24.0f));
    x = fma(x, d, V(1.0f / 6.0f));
    x = fma(x, d, V(0.5f));
    x = fma(x, d, one) * d;
    const V near = p * r * x / fma(p, x, one);
    return where_less(max(zero - d, d), V(kNear), near, far);
  }

  template <class V>
  static FASTKD_HOST_DEVICE HardState<V> with_label(const HardState<V>& others,
                                                    const Labels<V>& labels) {
    const HardState<V> label{labels.student, V(1.0f), V(0.0f)};
    return Base::combine_hard(others, label, 0.0f, 0.0f);
  }

  template <class V>
  static FASTKD_HOST_DEVICE V minus_magnitude(V x) {
    return V(0.0f) - max(V(0.0f) - x, x);
  }

  // log(1 + e^x).
  template <class V>
  static FASTKD_HOST_DEVICE V softplus(V x) {
    const V one(1.0f), e = exp_nonpositive(minus_magnitude(x));
    const V sum = one + e;  // what rounding took from it is added back
    return max(V(0.0f), x) + (log(sum) + (e - (sum - one)) / sum);
  }

  template <class V>
  static FASTKD_HOST_DEVICE V sigmoid(V x) {
    const V one(1.0f), e = exp_nonpositive(minus_magnitude(x));
    return where_less(x, V(0.0f), e, one) / (one + e);
  }
};

// run(functor) with the functor that computes these options.
template <Powers kPowers, class Run>
auto with_decoupled(const KdLossOptions& options, Run&& run) {
  static_assert(kPowers == Powers::kNone || kPowers == Powers::kAsOne);
  const float t = options.temperature;
  if (options.hard_weight == 0.0f) return run(DecoupledKdLoss<0, false>{});
  if constexpr (kPowers == Powers::kAsOne) {
    if (t == 1.0f || t == 2.0f || t == 4.0f) return run(DecoupledKdLoss<kAnyPower, true>{});
  }
  return run(DecoupledKdLoss<0, true>{});
}

}  // namespace fastkd
