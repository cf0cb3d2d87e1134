// SPDX-License-Identifier: Apache-2.0
// Knowledge distillation with soft targets (Hinton, Vinyals, Dean 2015, arXiv:1503.02531).
//
//   p = softmax(t / T), q = softmax(s / T)
//   loss = soft_weight * KL(p || q) + hard_weight * cross_entropy(s, y; label_smoothing)
//   dloss/ds = soft_weight / T * (q - p) + hard_weight * (softmax(s) - (1 - eps) onehot(y) - eps /
//   C)
#pragma once

#include "core/math.h"

namespace fastkd {

struct KdLossOptions {
  float temperature = 1.0f;
  float soft_weight = 1.0f;  // alpha * T^2, or alpha
  float hard_weight = 0.0f;  // 1 - alpha, or 0 without a target
  float label_smoothing = 0.0f;
};

// kPower = T for T in {1, 2, 4}: then exp(d) = exp(d / T)^T costs multiplications in place of an
// exponential. kPower = 0 takes any temperature.
template <int kPower_, bool kHard_>
struct KdLoss {
  static constexpr int kPower = kPower_;
  static constexpr bool kHard = kHard_;
  // Exponentials per class that `grad` needs again: student, teacher, student at temperature 1.
  static constexpr int kExps = kHard && kPower == 0 ? 3 : 2;

  template <class V>
  struct Exps {
    V value[kExps];
  };

  struct Params {
    float inverse_t, exp2_scale;  // 1 / T, log2(e) / T
    float soft_weight, hard_weight, label_smoothing;

    explicit Params(const KdLossOptions& o)
        : inverse_t(1.0f / o.temperature),
          exp2_scale(kLog2E / o.temperature),
          soft_weight(o.soft_weight),
          hard_weight(o.hard_weight),
          label_smoothing(o.label_smoothing) {}
  };

  // Largest |dloss/ds| of a row that weighs 1: every difference of probabilities is within 1.
  static FASTKD_HOST_DEVICE double grad_bound(const Params& p) {
    return static_cast<double>(p.soft_weight) * p.inverse_t + static_cast<double>(p.hard_weight);
  }

  // Sums over the classes seen so far, relative to the maxima of those classes.
  template <class V>
  struct State {
    V max_student, max_teacher;
    V sum_student, sum_teacher;  // sum exp((x - max) / T)
    V dot;                       // sum exp((t - max_t) / T) * ((t - max_t) - (s - max_s))
    V sum_hard;                  // sum exp(s - max_s)
    V sum_logit;                 // sum (s - max_s), for label smoothing
  };

  // What one row needs to write its gradient: g = e_s * student - e_t * teacher + e_1 * hard -
  // floor, minus label at the target.
  template <class V>
  struct GradScale {
    V student, teacher, hard, floor, label;
    V hard_only;  // scale of exp(s - HardState::max), for classes that the teacher lacks
  };

  template <class V>
  static FASTKD_HOST_DEVICE State<V> start(V max_student, V max_teacher) {
    const V zero(0.0f);
    return {max_student, max_teacher, zero, zero, zero, zero, zero};
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
    // p = 0 adds 0 whatever q is: (-inf) - (-inf) must not reach the sum.
    state.dot = fma(e_t, zero_where_zero(e_t, shifted_t - shifted_s), state.dot);
    Exps<V> exps;
    exps.value[0] = e_s;
    exps.value[1] = e_t;
    if constexpr (kHard) {
      const V e_1 = hard_exp(e_s, shifted_s);
      state.sum_hard = state.sum_hard + e_1;
      if constexpr (kExps == 3) exps.value[2] = e_1;
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
    a.dot = a.dot + b.dot;
    a.sum_hard = a.sum_hard + b.sum_hard;
    a.sum_logit = a.sum_logit + b.sum_logit;
  }

  // Lanes (or threads) that share their maxima: sum(V) -> float adds them up.
  template <class V, class Sum>
  static FASTKD_HOST_DEVICE State<float> across(const Params& p, const State<V>& a,
                                                float max_student, float max_teacher, Sum sum) {
    State<float> out = start(max_student, max_teacher);
    out.sum_student = sum(a.sum_student);
    out.sum_teacher = sum(a.sum_teacher);
    out.dot = sum(a.dot);
    if constexpr (kHard) out.sum_hard = sum(a.sum_hard);
    if (wants_logits(p)) out.sum_logit = sum(a.sum_logit);
    return out;
  }

  // Student classes that the teacher lacks (common_vocab): only the hard term sees them.
  template <class V>
  struct HardState {
    V max, sum, sum_logit;
  };

  template <class V>
  static FASTKD_HOST_DEVICE HardState<V> hard_state(const State<V>& a) {
    return {a.max_student, a.sum_hard, a.sum_logit};
  }

  template <class V>
  static FASTKD_HOST_DEVICE HardState<V> start_hard(V max) {
    return {max, V(0.0f), V(0.0f)};
  }

  template <class V, class Lanes>
  static FASTKD_HOST_DEVICE void update_hard(HardState<V>& state, V s, Lanes active) {
    const V shifted = s - state.max;
    state.sum = state.sum + exp_nonpositive(shifted);
    state.sum_logit = state.sum_logit + keep(active, shifted);
  }

  template <class V>
  static FASTKD_HOST_DEVICE HardState<V> combine_hard(const HardState<V>& a, const HardState<V>& b,
                                                      float classes_a, float classes_b) {
    HardState<V> out = start_hard(max(a.max, b.max));
    merge_hard(out, a, classes_a);
    merge_hard(out, b, classes_b);
    return out;
  }

  // Loss of a row. `label_logit` is the student's logit at the target.
  template <class V>
  static FASTKD_HOST_DEVICE V finish(const Params& p, const State<V>& a, const HardState<V>& hard,
                                     V label_logit, float student_classes) {
    V loss(0.0f);
    if (p.soft_weight != 0.0f) {  // a term that weighs 0 may be infinite
      const V kl = fma(a.dot, V(p.inverse_t) / a.sum_teacher, log(a.sum_student / a.sum_teacher));
      loss = V(p.soft_weight) * clamp_below_zero(kl);
    }
    if constexpr (kHard) {
      V nll = log(hard.sum);
      if (p.label_smoothing != 1.0f) {
        nll = nll - V(1.0f - p.label_smoothing) * (label_logit - hard.max);
      }
      if (p.label_smoothing != 0.0f) {
        nll = nll - V(p.label_smoothing / student_classes) * hard.sum_logit;
      }
      loss = loss + V(p.hard_weight) * nll;
    }
    return loss;
  }

  // `row_scale` = weight / denominator of the row.
  template <class V>
  static FASTKD_HOST_DEVICE GradScale<V> grad_scale(const Params& p, const State<V>& a,
                                                    const HardState<V>& hard, V row_scale,
                                                    float student_classes) {
    const V zero(0.0f);
    const V soft = row_scale * V(p.soft_weight * p.inverse_t);
    GradScale<V> scale{soft / a.sum_student, soft / a.sum_teacher, zero, zero, zero, zero};
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
    return {V(s.student), V(s.teacher), V(s.hard), V(s.floor), V(s.label), V(s.hard_only)};
  }

  // The same scale for exponentials that were taken relative to a part's own maxima.
  template <class V>
  static FASTKD_HOST_DEVICE GradScale<V> for_part(const Params& p, const GradScale<V>& row,
                                                  V student_below_max, V teacher_below_max) {
    GradScale<V> part = row;
    part.student = row.student * exp2_nonpositive(student_below_max * V(p.exp2_scale));
    part.teacher = row.teacher * exp2_nonpositive(teacher_below_max * V(p.exp2_scale));
    if constexpr (kHard) part.hard = row.hard * exp_nonpositive(student_below_max);
    return part;
  }

  template <class V>
  static FASTKD_HOST_DEVICE V grad_hard_only(const GradScale<V>& scale, V shifted_s) {
    return fma(exp_nonpositive(shifted_s), scale.hard_only, V(0.0f) - scale.floor);
  }

  template <class V>
  static FASTKD_HOST_DEVICE V grad(const GradScale<V>& scale, const Exps<V>& exps) {
    const V zero(0.0f);
    if constexpr (kHard) {
      const V soft = fma(exps.value[0], scale.student, zero - scale.floor);
      const V both = fma(exps.value[1], zero - scale.teacher, soft);
      if constexpr (kExps == 3) return fma(exps.value[2], scale.hard, both);
      return fma(power(exps.value[0]), scale.hard, both);
    }
    // Both products are rounded alike, so equal logits give exactly 0.
    return exps.value[0] * scale.student - exps.value[1] * scale.teacher;
  }

 private:
  template <class V>
  static FASTKD_HOST_DEVICE V power(V e_s) {
    if constexpr (kPower == 2) return e_s * e_s;
    if constexpr (kPower == 4) return (e_s * e_s) * (e_s * e_s);
    return e_s;
  }

  template <class V>
  static FASTKD_HOST_DEVICE V hard_exp(V e_s, V shifted_s) {
    if constexpr (kPower != 0) return power(e_s);
    return exp_nonpositive(shifted_s);
  }

  template <class V>
  static FASTKD_HOST_DEVICE V exp_nonpositive(V x) {
    return exp2_nonpositive(x * V(kLog2E));
  }

  template <class V>
  static FASTKD_HOST_DEVICE void merge_hard(HardState<V>& out, const HardState<V>& part,
                                            float classes) {
    const V below = part.max - out.max;
    out.sum = fma(part.sum, exp_nonpositive(below), out.sum);
    if (classes != 0.0f) out.sum_logit = out.sum_logit + fma(below, V(classes), part.sum_logit);
  }

  // Add `part` to `out`, whose maxima are at least the part's.
  template <class V>
  static FASTKD_HOST_DEVICE void merge(const Params& p, State<V>& out, const State<V>& part,
                                       float classes) {
    const V below_s = part.max_student - out.max_student;
    const V below_t = part.max_teacher - out.max_teacher;
    const V scale_t = exp2_nonpositive(below_t * V(p.exp2_scale));
    const V sum_teacher = part.sum_teacher * scale_t;
    // Both sums are rounded alike, so that equal logits give exactly 0.
    out.sum_student =
        out.sum_student + part.sum_student * exp2_nonpositive(below_s * V(p.exp2_scale));
    out.sum_teacher = out.sum_teacher + sum_teacher;
    // A part whose probabilities vanish beside the maximum adds 0, even where its dot is infinite.
    const V moved = fma(below_t - below_s, sum_teacher, part.dot * scale_t);
    out.dot = out.dot + zero_where_zero(sum_teacher, moved);
    if constexpr (kHard) {
      out.sum_hard = fma(part.sum_hard, exp_nonpositive(below_s), out.sum_hard);
      if (classes != 0.0f) out.sum_logit = out.sum_logit + fma(below_s, V(classes), part.sum_logit);
    }
  }
};

// run(functor) with the functor that computes these options. Without a hard term kPower says
// nothing.
template <class Run>
auto with_kd_loss(const KdLossOptions& options, bool has_target, Run&& run) {
  if (!has_target || options.hard_weight == 0.0f) return run(KdLoss<0, false>{});
  if (options.temperature == 1.0f) return run(KdLoss<1, true>{});
  if (options.temperature == 2.0f) return run(KdLoss<2, true>{});
  if (options.temperature == 4.0f) return run(KdLoss<4, true>{});
  return run(KdLoss<0, true>{});
}

}  // namespace fastkd
