// SPDX-License-Identifier: Apache-2.0
// Cross-entropy with a row's label, the hard term of the losses of logits.
//
//   cross_entropy(s, y; eps) = log(sum exp(s)) - (1 - eps) s_y - eps mean(s)
//   its gradient             = softmax(s) - (1 - eps) onehot(y) - eps / C
//
// with eps = label_smoothing (Szegedy et al. 2015, arXiv:1512.00567). Its exponentials are powers
// of the soft term's where T is 1, 2 or 4: exp(d) = exp(d / T)^T.
#pragma once

#include "core/math.h"

namespace fastkd {

template <class V>
FASTKD_HOST_DEVICE V exp_nonpositive(V x) {
  return exp2_nonpositive(x * V(kLog2E));
}

// log2(T) of a temperature in {1, 2, 4}, else 0.
inline int squarings_of(float temperature) {
  return temperature == 4.0f ? 2 : temperature == 2.0f ? 1 : 0;
}

// e^(2^squarings), squarings in {0, 1, 2}.
template <class V>
FASTKD_HOST_DEVICE V squared(V e, int squarings) {
  const V square = e * e;
  return squarings == 0 ? e : squarings == 1 ? square : square * square;
}

struct CrossEntropy {
  // Sums over the classes seen so far, relative to their maximum.
  template <class V>
  struct HardState {
    V max;
    V sum;        // sum exp(s - max)
    V sum_logit;  // sum (s - max), for label smoothing
  };

  template <class V>
  static FASTKD_HOST_DEVICE HardState<V> start_hard(V max) {
    return {max, V(0.0f), V(0.0f)};
  }

  // Takes a class in. Where `active` says that there is none, s = -inf adds nothing.
  template <class V, class Lanes>
  static FASTKD_HOST_DEVICE void update_hard(HardState<V>& state, V s, Lanes active) {
    const V shifted = s - state.max;
    state.sum = state.sum + exp_nonpositive(shifted);
    state.sum_logit = state.sum_logit + keep(active, shifted);
  }

  // `classes_a`, `classes_b`: how many classes each state has summed over (per lane).
  template <class V>
  static FASTKD_HOST_DEVICE HardState<V> combine_hard(const HardState<V>& a, const HardState<V>& b,
                                                      float classes_a, float classes_b) {
    HardState<V> out = start_hard(max(a.max, b.max));
    merge_hard(out, a, classes_a);
    merge_hard(out, b, classes_b);
    return out;
  }

  // Loss of a row, from Params' hard_weight and label_smoothing.
  template <class V, class Params>
  static FASTKD_HOST_DEVICE V hard_loss(const Params& p, const HardState<V>& hard, V label_logit,
                                        float classes) {
    V nll = log(hard.sum);
    if (p.label_smoothing != 1.0f) {
      nll = nll - V(1.0f - p.label_smoothing) * (label_logit - hard.max);
    }
    if (p.label_smoothing != 0.0f) {
      nll = nll - V(p.label_smoothing / classes) * hard.sum_logit;
    }
    return V(p.hard_weight) * nll;
  }

 protected:
  // Add `part` to `out`, whose maximum is at least the part's.
  template <class V>
  static FASTKD_HOST_DEVICE void merge_hard(HardState<V>& out, const HardState<V>& part,
                                            float classes) {
    const V below = part.max - out.max;
    out.sum = fma(part.sum, exp_nonpositive(below), out.sum);
    if (classes != 0.0f) out.sum_logit = out.sum_logit + fma(below, V(classes), part.sum_logit);
  }
};

}  // namespace fastkd
