// SPDX-License-Identifier: Apache-2.0
// How far a student's relation is from the teacher's, as torch.nn.functional has it: smooth_l1_loss
// (Huber's function divided by beta), l1_loss, mse_loss.
//
//   c = slope(difference);  value(c, difference);  add_value(sum, c, difference) = sum + value
//   loss = scale() * value;   dloss/ddifference = scale() * c
//
// V is a float or a double, or lanes of them; NaN stays NaN.
#pragma once

#include "core/math.h"
#include "core/pair_args.h"

namespace fastkd {

struct SmoothL1 {
  double beta;
  explicit FASTKD_HOST_DEVICE SmoothL1(double beta) : beta(beta) {}

  template <class V>
  FASTKD_HOST_DEVICE V slope(V difference) const {
    return clamp(difference, V(static_cast<Lane<V>>(beta)));
  }
  template <class V>
  FASTKD_HOST_DEVICE V value(V c, V difference) const {
    return c * (difference - V(static_cast<Lane<V>>(0.5)) * c);
  }
  template <class V>
  FASTKD_HOST_DEVICE V add_value(V sum, V c, V difference) const {
    return fma(c, fma(V(static_cast<Lane<V>>(-0.5)), c, difference), sum);
  }
  FASTKD_HOST_DEVICE double scale() const { return 1.0 / beta; }
};

struct L1 {
  explicit FASTKD_HOST_DEVICE L1(double) {}

  template <class V>
  FASTKD_HOST_DEVICE V slope(V difference) const {
    return sign(difference);
  }
  template <class V>
  FASTKD_HOST_DEVICE V value(V c, V difference) const {
    return c * difference;
  }
  template <class V>
  FASTKD_HOST_DEVICE V add_value(V sum, V c, V difference) const {
    return fma(c, difference, sum);
  }
  FASTKD_HOST_DEVICE double scale() const { return 1.0; }
};

struct L2 {
  explicit FASTKD_HOST_DEVICE L2(double) {}

  template <class V>
  FASTKD_HOST_DEVICE V slope(V difference) const {
    return difference;
  }
  template <class V>
  FASTKD_HOST_DEVICE V value(V c, V difference) const {
    return V(static_cast<Lane<V>>(0.5)) * c * difference;
  }
  template <class V>
  FASTKD_HOST_DEVICE V add_value(V sum, V c, V difference) const {
    return fma(V(static_cast<Lane<V>>(0.5)) * c, difference, sum);
  }
  FASTKD_HOST_DEVICE double scale() const { return 2.0; }
};

// run(criterion) with the type that the option names.
template <class Run>
inline auto with_criterion(Criterion criterion, double beta, Run&& run) {
  switch (criterion) {
    case Criterion::kL1:
      return run(L1(beta));
    case Criterion::kL2:
      return run(L2(beta));
    case Criterion::kSmoothL1:
      break;
  }
  return run(SmoothL1(beta));
}

}  // namespace fastkd
