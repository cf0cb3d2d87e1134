// SPDX-License-Identifier: Apache-2.0
// Knowledge distillation with soft targets (Hinton, Vinyals, Dean 2015, arXiv:1503.02531).
//
//   p = softmax(t / T), q = softmax(s / T)
//   loss = soft_weight * D(p, q) + hard_weight * cross_entropy(s, y; label_smoothing)
//   dloss/ds = soft_weight * dD/ds + hard_weight * (softmax(s) - (1 - eps) onehot(y) - eps / C)
//
// with D one of losses/divergence.h; that of forward KL is (q - p) / T.
#pragma once

#include "core/logit_args.h"
#include "losses/cross_entropy.h"
#include "losses/divergence.h"

namespace fastkd {

struct KdLossOptions {
  float temperature = 1.0f;
  float soft_weight = 1.0f;  // alpha * T^2, or alpha
  float hard_weight = 0.0f;  // 1 - alpha, or 0 without a target
  float label_smoothing = 0.0f;
  Divergence divergence = Divergence::kForwardKl;
  double beta = 0.5;           // of kJensenShannon, in (0, 1)
  float target_weight = 0.0f;  // of kDecoupled
};

// kPower = T for T in {1, 2, 4}: then exp(d) = exp(d / T)^T costs multiplications in place of an
// exponential. kAnyPower = one of them, known at run time. kPower = 0 takes any temperature.
constexpr int kAnyPower = -1;

template <class D, int kPower_, bool kHard_>
struct KdLoss : CrossEntropy {
  static constexpr int kPower = kPower_;
  static constexpr bool kHard = kHard_;
  // What is kept of each class: what the divergence needs, and the student's exponential at
  // temperature 1 where it is no power of that at T.
  static constexpr bool kKeepHard = kHard && kPower == 0;
  static constexpr int kExps = D::kKept + (kKeepHard ? 1 : 0);
  // Whether each class has to be visited a second time, by `refine`, before the loss is known.
  static constexpr bool kRefines = D::kRefines;
  // Whether rows have a label, and whether -inf is read in the place of its logits.
  static constexpr bool kHasLabel = kHard, kHidesLabel = false;

  template <class V>
  struct Exps {
    V value[kExps];
  };

  struct Params {
    DivergenceParams divergence;
    float exp2_scale;  // log2(e) / T
    float soft_weight, hard_weight, label_smoothing;
    int squarings;  // log2(T), of kAnyPower

    explicit Params(const KdLossOptions& o)
        : divergence{o.divergence, static_cast<float>(o.beta), static_cast<float>(1.0 - o.beta),
                     1.0f / o.temperature},
          exp2_scale(kLog2E / o.temperature),
          soft_weight(o.soft_weight),
          hard_weight(o.hard_weight),
          label_smoothing(o.label_smoothing),
          squarings(squarings_of(o.temperature)) {}
  };

  // Largest |dloss/ds| of a row that weighs 1: every difference of probabilities is within 1.
  static FASTKD_HOST_DEVICE double grad_bound(const Params& p) {
    const double soft = static_cast<double>(p.soft_weight) * p.divergence.inverse_t;
    return soft * D::grad_bound(p.divergence) + static_cast<double>(p.hard_weight);
  }

  // Sums over the classes seen so far, relative to the maxima of those classes.
  template <class V>
  struct State {
    V max_student, max_teacher;
    V sum_student, sum_teacher;  // sum exp((x - max) / T)
    V sum_hard;                  // sum exp(s - max_s)
    V sum_logit;                 // sum (s - max_s), for label smoothing
    V divergence[D::kSums];
  };

  // What one row needs to write its gradient: the soft term's by SoftScale, plus e_1 * hard -
  // floor, minus label at the target.
  template <class V>
  struct GradScale {
    V student, kept, hard, floor, label;
    V pull;       // of the label on the exponentials of other classes, of DecoupledKdLoss
    V hard_only;  // scale of exp(s - HardState::max), for classes that the teacher lacks
    int squarings;
  };

  template <class V>
  static FASTKD_HOST_DEVICE State<V> start(V max_student, V max_teacher) {
    const V zero(0.0f);
    State<V> state{max_student, max_teacher, zero, zero, zero, zero, {}};
    for (int i = 0; i < D::kSums; ++i) state.divergence[i] = zero;
    return state;
  }

  // Takes a class in. Where there is none, s = t = -inf adds nothing.
  template <class V>
  static FASTKD_HOST_DEVICE Exps<V> update(const Params& p, State<V>& state, V s, V t) {
    const V shifted_s = s - state.max_student;
    const V shifted_t = t - state.max_teacher;
    const V e_s = exp2_nonpositive(shifted_s * V(p.exp2_scale));
    const V e_t = exp2_nonpositive(shifted_t * V(p.exp2_scale));
    state.sum_student = state.sum_student + e_s;
    state.sum_teacher = state.sum_teacher + e_t;
    Exps<V> exps;
    exps.value[0] = e_s;
    exps.value[1] = e_t;
    D::take(p.divergence, state.divergence, exps.value, shifted_s, shifted_t);
    if constexpr (kHard) {
      const V e_1 = hard_exp(e_s, shifted_s, p.squarings);
      state.sum_hard = state.sum_hard + e_1;
      if constexpr (kKeepHard) exps.value[kExps - 1] = e_1;
    }
    return exps;
  }

  // Only label smoothing needs the sum of the logits, and it costs as much as a sum of
  // exponentials: then every class goes through add_logit too, or only the lanes of `active` do.
  static FASTKD_HOST_DEVICE bool wants_logits(const Params& p) {
    return kHard && p.label_smoothing != 0.0f;
  }
  template <class V, class Lanes>
  static FASTKD_HOST_DEVICE void add_logit(State<V>& state, V s, Lanes active) {
    state.sum_logit = state.sum_logit + keep(active, s - state.max_student);
  }

  template <class V>
  using Normalizer = fastkd::Normalizer<V>;

  // A second visit to each class, for divergences that need the probabilities: sums go to a state
  // that start() made, and the exponentials become what `grad` needs.
  template <class V>
  static FASTKD_HOST_DEVICE Normalizer<V> normalizer(const State<V>& row) {
    return {V(1.0f) / row.sum_student, V(1.0f) / row.sum_teacher,
            log(row.sum_student / row.sum_teacher)};
  }
  // The same for exponentials that were taken relative to a part's own maxima.
  template <class V>
  static FASTKD_HOST_DEVICE Normalizer<V> for_part(const Params& p, const Normalizer<V>& row,
                                                   V student_below_max, V teacher_below_max) {
    const Move<V> part = move(p, student_below_max, teacher_below_max);
    return {row.student * part.scale_student, row.teacher * part.scale_teacher,
            fma(part.below_teacher - part.below_student, V(p.divergence.inverse_t), row.log_ratio)};
  }
  template <class V>
  static FASTKD_HOST_DEVICE Normalizer<V> broadcast(const Normalizer<float>& n) {
    return {V(n.student), V(n.teacher), V(n.log_ratio)};
  }
  template <class V>
  static FASTKD_HOST_DEVICE void refine(const Params& p, State<V>& state,
                                        const Normalizer<V>& normalizer, Exps<V>& exps) {
    D::refine(p.divergence, state.divergence, normalizer, exps.value);
  }
  // The row's sums, with those of the second visit.
  template <class V>
  static FASTKD_HOST_DEVICE State<V> with_refined(const State<V>& row, const State<V>& refined) {
    State<V> out = row;
    for (int i = 0; i < D::kSums; ++i) out.divergence[i] = refined.divergence[i];
    return out;
  }

  // `classes_a`, `classes_b`: how many classes each state has summed over (per lane).
  template <class V>
  static FASTKD_HOST_DEVICE State<V> combine(const Params& p, const State<V>& a, const State<V>& b,
                                             float classes_a, float classes_b) {
    State<V> out = start(max(a.max_student, b.max_student), max(a.max_teacher, b.max_teacher));
    merge(p, out, a, classes_a);
    merge(p, out, b, classes_b);
    return out;
  }

  // The same sums relative to maxima that are not below their own.
  template <class V>
  static FASTKD_HOST_DEVICE State<V> rebase(const Params& p, const State<V>& part, V max_student,
                                            V max_teacher, float classes) {
    State<V> out = start(max_student, max_teacher);
    merge(p, out, part, classes);
    return out;
  }

  // Sums of two sets of classes that share their maxima.
  template <class V>
  static FASTKD_HOST_DEVICE void add(State<V>& a, const State<V>& b) {
    a.sum_student = a.sum_student + b.sum_student;
    a.sum_teacher = a.sum_teacher + b.sum_teacher;
    a.sum_hard = a.sum_hard + b.sum_hard;
    a.sum_logit = a.sum_logit + b.sum_logit;
    for (int i = 0; i < D::kSums; ++i) a.divergence[i] = a.divergence[i] + b.divergence[i];
  }

  // Lanes (or threads) that share their maxima: sum(V) -> float adds them up.
  template <class V, class Sum>
  static FASTKD_HOST_DEVICE State<float> across(const Params& p, const State<V>& a,
                                                float max_student, float max_teacher, Sum sum) {
    State<float> out = start(max_student, max_teacher);
    out.sum_student = sum(a.sum_student);
    out.sum_teacher = sum(a.sum_teacher);
    for (int i = 0; i < D::kSums; ++i) {
      out.divergence[i] = sum(a.divergence[i]);
    }
    if constexpr (kHard) out.sum_hard = sum(a.sum_hard);
    if (wants_logits(p)) out.sum_logit = sum(a.sum_logit);
    return out;
  }

  // The hard term's sums, which those of classes that the teacher lacks (common_vocab) join.
  template <class V>
  static FASTKD_HOST_DEVICE HardState<V> hard_state(const State<V>& a) {
    return {a.max_student, a.sum_hard, a.sum_logit};
  }

  // Loss of a row.
  template <class V>
  static FASTKD_HOST_DEVICE V finish(const Params& p, const State<V>& a, const HardState<V>& hard,
                                     const Labels<V>& labels, float student_classes) {
    V loss = soft_loss(p, a.divergence, a.sum_student, a.sum_teacher);
    if constexpr (kHard) loss = loss + hard_loss(p, hard, labels.student, student_classes);
    return loss;
  }

  // Its soft term.
  template <class V>
  static FASTKD_HOST_DEVICE V soft_loss(const Params& p, const V* divergence, V sum_student,
                                        V sum_teacher) {
    if (p.soft_weight == 0.0f) return V(0.0f);  // a term that weighs 0 may be infinite
    const V value = D::value(p.divergence, divergence, sum_student, sum_teacher);
    return V(p.soft_weight) * clamp_below_zero(value);
  }

  // `row_scale` = weight / denominator of the row.
  template <class V>
  static FASTKD_HOST_DEVICE GradScale<V> grad_scale(const Params& p, const State<V>& a,
                                                    const HardState<V>& hard, const Labels<V>&,
                                                    V row_scale, float student_classes) {
    const V zero(0.0f);
    GradScale<V> scale{zero, zero, zero, zero, zero, zero, zero, p.squarings};
    if (p.soft_weight != 0.0f) {
      const V weight = row_scale * V(p.soft_weight * p.divergence.inverse_t);
      const SoftScale<V> soft =
          D::scale(p.divergence, a.divergence, weight, a.sum_student, a.sum_teacher);
      scale.student = soft.student;
      scale.kept = soft.kept;
    }
    if constexpr (kHard) {
      const V weight = row_scale * V(p.hard_weight);
      scale.hard_only = weight / hard.sum;
      scale.hard = scale.hard_only * exp_nonpositive(a.max_student - hard.max);
      scale.floor = weight * V(p.label_smoothing / student_classes);
      scale.label = weight * V(1.0f - p.label_smoothing);
    }
    return scale;
  }

  template <class V>
  static FASTKD_HOST_DEVICE GradScale<V> broadcast(const GradScale<float>& s) {
    return {V(s.student), V(s.kept), V(s.hard),      V(s.floor),
            V(s.label),   V(s.pull), V(s.hard_only), s.squarings};
  }

  // The same scale for exponentials that were taken relative to a part's own maxima.
  template <class V>
  static FASTKD_HOST_DEVICE GradScale<V> for_part(const Params& p, const GradScale<V>& row,
                                                  V student_below_max, V teacher_below_max) {
    const Move<V> below = move(p, student_below_max, teacher_below_max);
    const SoftScale<V> soft = D::for_part(p.divergence, SoftScale<V>{row.student, row.kept}, below);
    GradScale<V> part = row;
    part.student = soft.student;
    part.kept = soft.kept;
    part.pull = row.pull * below.scale_student;
    if constexpr (kHard) part.hard = row.hard * exp_nonpositive(student_below_max);
    return part;
  }

  template <class V>
  static FASTKD_HOST_DEVICE V grad_hard_only(const GradScale<V>& scale, V shifted_s) {
    return fma(exp_nonpositive(shifted_s), scale.hard_only, V(0.0f) - scale.floor);
  }

  template <class V>
  static FASTKD_HOST_DEVICE V grad(const GradScale<V>& scale, const Exps<V>& exps) {
    const V zero(0.0f), e_s = exps.value[0];
    if constexpr (kHard) {
      const V soft = soft_grad(scale, exps, zero - scale.floor);
      if constexpr (kKeepHard) return fma(exps.value[kExps - 1], scale.hard, soft);
      return fma(power(e_s, scale.squarings), scale.hard, soft);
    }
    if constexpr (D::kKeepsSlope) return soft_grad(scale, exps, zero);
    // Both products are rounded alike, so equal logits give exactly 0.
    return e_s * scale.student - exps.value[1] * scale.kept;
  }

 private:
  // The soft term's gradient, added to `start`.
  template <class V>
  static FASTKD_HOST_DEVICE V soft_grad(const GradScale<V>& scale, const Exps<V>& exps, V start) {
    const V e_s = exps.value[0];
    if constexpr (D::kKeepsSlope) {
      return fma(e_s, D::slope(scale.student, scale.kept, exps.value), start);
    } else {
      return fma(exps.value[1], V(0.0f) - scale.kept, fma(e_s, scale.student, start));
    }
  }

  template <class V>
  static FASTKD_HOST_DEVICE V power(V e_s, int squarings) {
    constexpr int kSquarings = kPower == 4 ? 2 : kPower == 2 ? 1 : 0;
    return squared(e_s, kPower == kAnyPower ? squarings : kSquarings);
  }

  template <class V>
  static FASTKD_HOST_DEVICE V hard_exp(V e_s, V shifted_s, int squarings) {
    if constexpr (kPower != 0) return power(e_s, squarings);
    return exp_nonpositive(shifted_s);
  }

  template <class V>
  static FASTKD_HOST_DEVICE Move<V> move(const Params& p, V below_student, V below_teacher) {
    return {below_student, below_teacher, exp2_nonpositive(below_student * V(p.exp2_scale)),
            exp2_nonpositive(below_teacher * V(p.exp2_scale))};
  }

  // Add `part` to `out`, whose maxima are at least the part's.
  template <class V>
  static FASTKD_HOST_DEVICE void merge(const Params& p, State<V>& out, const State<V>& part,
                                       float classes) {
    const V below_s = part.max_student - out.max_student;
    const Move<V> to_out = move(p, below_s, part.max_teacher - out.max_teacher);
    // Both sums are rounded alike, so that equal logits give exactly 0.
    const V sum_student = part.sum_student * to_out.scale_student;
    const V sum_teacher = part.sum_teacher * to_out.scale_teacher;
    out.sum_student = out.sum_student + sum_student;
    out.sum_teacher = out.sum_teacher + sum_teacher;
    D::merge(p.divergence, out.divergence, part.divergence, to_out, sum_student, sum_teacher);
    if constexpr (kHard) {
      out.sum_hard = fma(part.sum_hard, exp_nonpositive(below_s), out.sum_hard);
      if (classes != 0.0f) out.sum_logit = out.sum_logit + fma(below_s, V(classes), part.sum_logit);
    }
  }
};

// run(functor) with the functor that computes these options by this divergence; without a hard term
// kPower says nothing. Powers: which temperatures have code of their own: none, 1, or 1, 2 and 4 as
// one or each.
enum class Powers { kNone, kOne, kAsOne, kEach };

template <class D, Powers kPowers, class Run>
auto with_temperature(const KdLossOptions& options, bool has_target, Run&& run) {
  const float t = options.temperature;
  if (!has_target || options.hard_weight == 0.0f) return run(KdLoss<D, 0, false>{});
  if constexpr (kPowers == Powers::kOne || kPowers == Powers::kEach) {
    if (t == 1.0f) return run(KdLoss<D, 1, true>{});
  }
  if constexpr (kPowers == Powers::kEach) {
    if (t == 2.0f) return run(KdLoss<D, 2, true>{});
    if (t == 4.0f) return run(KdLoss<D, 4, true>{});
  }
  if constexpr (kPowers == Powers::kAsOne) {
    if (t == 1.0f || t == 2.0f || t == 4.0f) return run(KdLoss<D, kAnyPower, true>{});
  }
  return run(KdLoss<D, 0, true>{});
}

}  // namespace fastkd
