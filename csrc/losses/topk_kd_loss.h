// SPDX-License-Identifier: Apache-2.0
// Knowledge distillation from a teacher that names K classes of a row, and what it says of each.
//
//   p_c: of the named classes; r = max(0, 1 - sum p): of all the others together
//   q = softmax(s / T); rho: the sum of q over the others
//   bucket:               D = sum of p log(p / q) + r log(r / rho)
//   truncate:             D = sum of p log(p / q)
//   renormalize_teacher:  the same with p over its sum
//   renormalize:          the same with p and q over their sums
//   loss = soft_weight * D + hard_weight * cross_entropy(s, y; label_smoothing)
//   dD/ds_c = (m q_c - p_c) / T of a named class, (m rho - r) q_c / (rho T) of another, where
//   m = sum p + r; q over its sum (renormalize): m q_c - p_c and 0
//
// The others' sums are taken without the named classes, never by subtraction: a driver sums the
// others' exponentials (Rest), then the few named ones (Named), and `settle` joins them.
#pragma once

#include "losses/cross_entropy.h"

namespace fastkd {

enum class Tail : int32_t {
  kBucket = 0,
  kRenormalize = 1,
  kRenormalizeTeacher = 2,
  kTruncate = 3,
};

struct TopKKdLossOptions {
  float temperature = 1.0f;
  float soft_weight = 1.0f;  // alpha * T^2, or alpha
  float hard_weight = 0.0f;  // 1 - alpha, or 0 without a target
  float label_smoothing = 0.0f;
  Tail tail = Tail::kBucket;
  bool logits = false;  // the teacher gives logits, of which log-probabilities are made
};

// No log-probability is above this: bfloat16 rounds the logarithm of 1 to no more.
constexpr float kMostLogProbability = 0.01f;

// kPower = T for T in {1, 2, 4} at run time (kAnyPower of kd_loss.h): exp(d) = exp(d / T)^T.
template <bool kPower, bool kHard_>
struct TopKKdLoss : CrossEntropy {
  static constexpr bool kHard = kHard_, kHasLabel = kHard;
  // What is kept of each class: its exponential at T, and at 1 where that is no power of it.
  static constexpr bool kKeepHard = kHard && !kPower;
  static constexpr int kExps = kKeepHard ? 2 : 1;

  template <class V>
  struct Exps {
    V value[kExps];
  };

  struct Params {
    Tail tail;
    bool logits;
    float inverse_t, exp2_scale;  // 1 / T, log2(e) / T
    float teacher_scale;          // of differences of what the teacher gives: 1 / T, or 1
    float soft_weight, hard_weight, label_smoothing;
    int squarings;  // log2(T), of kPower

    explicit Params(const TopKKdLossOptions& o)
        : tail(o.tail),
          logits(o.logits),
          inverse_t(1.0f / o.temperature),
          exp2_scale(kLog2E / o.temperature),
          teacher_scale(o.logits ? inverse_t : 1.0f),
          soft_weight(o.soft_weight),
          hard_weight(o.hard_weight),
          label_smoothing(o.label_smoothing),
          squarings(squarings_of(o.temperature)) {}

    FASTKD_HOST_DEVICE bool renormalizes() const {
      return tail == Tail::kRenormalize || tail == Tail::kRenormalizeTeacher;
    }
  };

  // Largest |dloss/ds| of a row that weighs 1.
  static FASTKD_HOST_DEVICE double grad_bound(const Params& p) {
    return static_cast<double>(p.soft_weight) * static_cast<double>(p.inverse_t) +
           static_cast<double>(p.hard_weight);
  }

  // ---- classes that the teacher does not name ----

  // Sums relative to their maximum.
  template <class V>
  struct Rest {
    V max, sum, sum_hard;  // sum of exp((s - max) / T), of exp(s - max)
  };

  template <class V>
  static FASTKD_HOST_DEVICE Rest<V> start_rest(V max) {
    return {max, V(0.0f), V(0.0f)};
  }

  // Takes a class in; -inf adds nothing.
  template <class V>
  static FASTKD_HOST_DEVICE Exps<V> update(const Params& p, Rest<V>& rest, V s) {
    const V shifted = s - rest.max;
    Exps<V> exps;
    exps.value[0] = exp2_nonpositive(shifted * V(p.exp2_scale));
    rest.sum = rest.sum + exps.value[0];
    if constexpr (kHard) {
      V hard;
      if constexpr (kPower) {
        hard = squared(exps.value[0], p.squarings);
      } else {
        hard = exps.value[1] = exp_nonpositive(shifted);
      }
      rest.sum_hard = rest.sum_hard + hard;
    }
    return exps;
  }

  template <class V>
  static FASTKD_HOST_DEVICE Rest<V> combine(const Params& p, const Rest<V>& a, const Rest<V>& b) {
    Rest<V> out = start_rest(max(a.max, b.max));
    merge(p, out, a);
    merge(p, out, b);
    return out;
  }

  // ---- classes that it names ----

  // The logit or log p_c. Above 0 a rounded logarithm of 1 is all that one can be.
  template <class V>
  static FASTKD_HOST_DEVICE V teacher_log(const Params& p, V value) {
    if (p.logits) return value;
    return where_less(V(0.0f), value, V(0.0f), value);
  }

  static FASTKD_HOST_DEVICE bool is_bad(const Params& p, float value) {
    return !p.logits && value > kMostLogProbability;
  }

  // Sums relative to the maxima of these classes.
  template <class V>
  struct Named {
    V max_student, max_teacher;
    V sum_student, sum_teacher, sum_hard;
  };

  template <class V>
  static FASTKD_HOST_DEVICE Named<V> start_named(V max_student, V max_teacher) {
    const V zero(0.0f);
    return {max_student, max_teacher, zero, zero, zero};
  }

  template <class V>
  static FASTKD_HOST_DEVICE void take(const Params& p, Named<V>& named, V s, V t) {
    const V shifted = s - named.max_student;
    named.sum_student = named.sum_student + exp2_nonpositive(shifted * V(p.exp2_scale));
    named.sum_teacher = named.sum_teacher + at_teacher(p, t - named.max_teacher);
    if constexpr (kHard) named.sum_hard = named.sum_hard + exp_nonpositive(shifted);
  }

  // Sums of two sets of classes that share their maxima.
  template <class V>
  static FASTKD_HOST_DEVICE Named<V> add(const Named<V>& a, const Named<V>& b) {
    return {a.max_student, a.max_teacher, a.sum_student + b.sum_student,
            a.sum_teacher + b.sum_teacher, a.sum_hard + b.sum_hard};
  }

  // Whether the sum of the logits is wanted.
  static FASTKD_HOST_DEVICE bool smooths(const Params& p) {
    return kHard && p.label_smoothing != 0.0f;
  }

  // ---- a row ----

  // What turns a named class's numbers into p_c and q_c, and the row's other numbers.
  struct Row {
    float max_student, max_teacher;  // that exponentials are relative to
    float p_scale, log_p;            // p_c = e^(t - max_teacher) p_scale (logits: over T), its log
    float q_scale, log_q;            // q_c = e^((s - max_student) / T) q_scale
    float mass, rest, rho;           // m, r
    float tail_loss;                 // r log(r / rho), or NaN
    bool whole;                      // p and r sum to 1: D is not below 0
    float max_hard, sum_hard;        // of all classes
  };

  static FASTKD_HOST_DEVICE Row settle(const Params& p, const Rest<float>& rest,
                                       const Named<float>& named) {
    Row row{};
    const bool named_only = p.tail == Tail::kRenormalize;
    row.max_hard = max(rest.max, named.max_student);
    row.max_student = named_only ? named.max_student : row.max_hard;
    row.max_teacher = named.max_teacher;

    const float rest_below = rest.max - row.max_student;
    const float of_rest = named_only ? 0.0f : rest.sum * at_t(p, rest_below);
    const float sum = of_rest + named.sum_student * at_t(p, named.max_student - row.max_student);
    // Of a student without any of the named classes q is 0 there, and D infinite.
    const bool lacks_all = named_only && sum == 0.0f;
    row.q_scale = lacks_all ? 0.0f : 1.0f / sum;
    row.log_q = lacks_all ? -INFINITY : -log(sum);

    if (p.renormalizes()) {
      row.p_scale = zero_where_zero(named.sum_teacher, 1.0f / named.sum_teacher);
      row.log_p = -log(named.sum_teacher);
      row.mass = zero_where_zero(named.sum_teacher, 1.0f);
      row.whole = true;
    } else {
      row.p_scale = exp_nonpositive(named.max_teacher);
      row.log_p = named.max_teacher;
      row.mass = named.sum_teacher * row.p_scale;
    }
    row.rho = zero_where_zero(of_rest, of_rest / sum);
    if (named_only) row.tail_loss = 0.0f * rest.sum;  // NaN gives NaN, as it will in the gradient
    if (p.tail == Tail::kBucket) {
      // A student that has no other class has nowhere to put the rest, which is then rounding.
      row.rest = zero_where_zero(rest.sum, clamp_below_zero(1.0f - row.mass));
      row.mass = row.mass + row.rest;
      if (row.rest != 0.0f) {
        const float log_rho = fma(rest_below, p.inverse_t, log(rest.sum)) + row.log_q;
        row.tail_loss = row.rest * (log(row.rest) - log_rho);
        row.whole = true;
      }
    }
    if constexpr (kHard) {
      row.sum_hard = fma(rest.sum_hard, exp_nonpositive(rest.max - row.max_hard),
                         named.sum_hard * exp_nonpositive(named.max_student - row.max_hard));
    }
    return row;
  }

  // p_c log(p_c / q_c).
  template <class V>
  static FASTKD_HOST_DEVICE V divergence(const Params& p, const Row& row, V s, V t) {
    const V below = (t - V(row.max_teacher)) * V(p.teacher_scale);
    const V probability = exp_nonpositive(below) * V(row.p_scale);
    const V log_q = fma(s - V(row.max_student), V(p.inverse_t), V(row.log_q));
    return zero_where_zero(probability, probability * (below + V(row.log_p) - log_q));
  }

  // Loss of a row, from the sum of these; logit_sum = sum of s - row.max_hard over all classes.
  static FASTKD_HOST_DEVICE float finish(const Params& p, const Row& row, float divergence,
                                         float label_logit, float logit_sum, float classes) {
    float loss = 0.0f;
    if (p.soft_weight != 0.0f) {  // a term that weighs 0 may be infinite
      const float value = divergence + row.tail_loss;
      loss = p.soft_weight * (row.whole ? clamp_below_zero(value) : value);
    }
    if constexpr (kHard) {
      const HardState<float> hard{row.max_hard, row.sum_hard, logit_sum};
      loss = loss + hard_loss(p, hard, label_logit, classes);
    }
    return loss;
  }

  // ---- the gradient ----

  // Of a row whose weight over the denominator is row_scale.
  struct GradScale {
    float soft, hard;            // what multiplies m q_c - p_c, and e^(s - max_hard)
    float rest_soft, rest_hard;  // what multiplies the others' exponentials
    float floor, label;          // taken off every class, and off the target
  };

  static FASTKD_HOST_DEVICE GradScale grad_scale(const Params& p, const Row& row,
                                                 const Rest<float>& rest, float row_scale,
                                                 float classes) {
    GradScale scale{};
    if (p.soft_weight != 0.0f) {
      scale.soft = row_scale * p.soft_weight * p.inverse_t;
      const float pull = scale.soft * (row.mass * row.rho - row.rest);
      scale.rest_soft = zero_where_zero(rest.sum, pull / rest.sum);
    }
    if constexpr (kHard) {
      const float weight = row_scale * p.hard_weight;
      scale.hard = weight / row.sum_hard;
      scale.rest_hard = scale.hard * exp_nonpositive(rest.max - row.max_hard);
      scale.floor = weight * (p.label_smoothing / classes);
      scale.label = weight * (1.0f - p.label_smoothing);
    }
    return scale;
  }

  template <class V>
  static FASTKD_HOST_DEVICE V grad_of_named(const Params& p, const Row& row, const GradScale& scale,
                                            V s, V t) {
    V grad = V(0.0f) - V(scale.floor);
    if (p.soft_weight != 0.0f) {
      const V probability = at_teacher(p, t - V(row.max_teacher)) * V(row.p_scale);
      const V q = at_t(p, s - V(row.max_student)) * V(row.q_scale);
      grad = fma(fma(V(row.mass), q, V(0.0f) - probability), V(scale.soft), grad);
    }
    if constexpr (kHard) grad = fma(exp_nonpositive(s - V(row.max_hard)), V(scale.hard), grad);
    return grad;
  }

  // Of exponentials that are relative to the maximum of a part of the others.
  template <class V>
  struct RestScale {
    V soft, hard, floor;
    int squarings;
  };

  template <class V>
  static FASTKD_HOST_DEVICE RestScale<V> for_part(const Params& p, const GradScale& scale,
                                                  float part_below_rest) {
    return {V(scale.rest_soft * at_t(p, part_below_rest)),
            V(scale.rest_hard * exp_nonpositive(part_below_rest)), V(scale.floor), p.squarings};
  }

  template <class V>
  static FASTKD_HOST_DEVICE V grad_of_rest(const RestScale<V>& scale, const Exps<V>& exps) {
    const V e = exps.value[0];
    if constexpr (!kHard) return e * scale.soft;
    const V soft = fma(e, scale.soft, V(0.0f) - scale.floor);
    if constexpr (kKeepHard) return fma(exps.value[1], scale.hard, soft);
    return fma(squared(e, scale.squarings), scale.hard, soft);
  }

 private:
  template <class V>
  static FASTKD_HOST_DEVICE void merge(const Params& p, Rest<V>& out, const Rest<V>& part) {
    const V below = part.max - out.max;
    out.sum = fma(part.sum, exp2_nonpositive(below * V(p.exp2_scale)), out.sum);
    if constexpr (kHard) out.sum_hard = fma(part.sum_hard, exp_nonpositive(below), out.sum_hard);
  }

  template <class V>
  static FASTKD_HOST_DEVICE V at_teacher(const Params& p, V below) {
    return exp_nonpositive(below * V(p.teacher_scale));
  }

  template <class V>
  static FASTKD_HOST_DEVICE V at_t(const Params& p, V below) {
    return exp2_nonpositive(below * V(p.exp2_scale));
  }
};

// run(functor) with the functor that computes these options.
template <class Run>
auto with_topk(const TopKKdLossOptions& options, bool has_target, Run&& run) {
  const float t = options.temperature;
  if (!has_target || options.hard_weight == 0.0f) return run(TopKKdLoss<false, false>{});
  if (t == 1.0f || t == 2.0f || t == 4.0f) return run(TopKKdLoss<true, true>{});
  return run(TopKKdLoss<false, true>{});
}

}  // namespace fastkd
