// SPDX-License-Identifier: Apache-2.0
// Runs kernels over exactly sized heap buffers, for builds with sanitizers (python3 dev.py
// sanitize), and holds each result against a plain loop in double.
#pragma once

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include "core/dtype.h"
#include "tests/calls.h"

namespace fastkd::check {

struct Shape {
  int64_t outer, classes, inner;
  bool columns;     // classes strided, pixels contiguous
  int64_t padding;  // unused elements between rows
};

struct Options {
  float temperature, alpha, smoothing;
  bool hard, weighted, ignored, with_grad;
  Reduction reduction;
  int64_t teacher_classes_more;  // common_vocab: the teacher's classes minus the student's
  Divergence divergence = Divergence::kForwardKl;
  double beta = 0.5;  // of kDecoupled: the weight of the label against the rest
  bool in_place = false;
};

// Logits in a buffer that ends with the last element, so that any byte beyond it is an error.
struct Logits {
  std::vector<uint8_t> bytes;
  LogitView view;

  Logits(Dtype dtype, const Shape& shape, int64_t classes) {
    view.dtype = dtype;
    view.classes = classes;
    if (shape.columns) {
      view.stride_inner = 1;
      view.stride_class = shape.inner + shape.padding;
      view.stride_outer = view.stride_class * classes;
    } else {
      view.stride_class = 1;
      view.stride_inner = classes + shape.padding;
      view.stride_outer = view.stride_inner * shape.inner;
    }
    const int64_t last = (shape.outer - 1) * view.stride_outer + (classes - 1) * view.stride_class +
                         (shape.inner - 1) * view.stride_inner;
    bytes.resize(static_cast<size_t>((last + 1) * element_size(dtype)));
    bytes.shrink_to_fit();
    view.data = bytes.data();
  }

  float get(int64_t outer, int64_t c, int64_t inner) const {
    float value = 0.0f;
    visit(view.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      value = to_float(view.template at<T>(outer, inner)[c * view.stride_class]);
    });
    return value;
  }

  void set(int64_t outer, int64_t c, int64_t inner, float value) const {
    visit(view.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      view.template at<T>(outer, inner)[c * view.stride_class] = from_float<T>(value);
    });
  }
};

struct Check {
  std::mt19937 random{0};  // seeded anew by each kind of check: none changes the inputs of another
  int64_t calls = 0, failures = 0;

  void expect(double value, double truth, double tolerance, const char* what) {
    if (fabs(value - truth) <= tolerance * (1.0 + fabs(truth))) return;
    if (++failures <= 20) printf("%s: %.9g, expected %.9g\n", what, value, truth);
  }

  void run(const Shape& shape, Dtype student_dtype, Dtype teacher_dtype, const Options& o) {
    const int64_t rows = shape.outer * shape.inner;
    const int64_t classes = shape.classes;
    const int64_t teacher_classes =
        classes + o.teacher_classes_more > 0 ? classes + o.teacher_classes_more : 1;
    Logits student(student_dtype, shape, classes), teacher(teacher_dtype, shape, teacher_classes);
    Logits grad(student_dtype, shape, classes);
    std::normal_distribution<float> normal(0.0f, 3.0f);
    fill(student, shape, [&] { return normal(random); });
    fill(teacher, shape, [&] { return normal(random); });
    std::vector<int64_t> target(static_cast<size_t>(rows));
    std::vector<float> weight(static_cast<size_t>(rows));
    for (size_t row = 0; row < target.size(); ++row) {
      target[row] =
          o.ignored && random() % 4 == 0 ? -100 : static_cast<int64_t>(random() % classes);
      weight[row] = random() % 5 == 0 ? 0.0f : static_cast<float>(random() % 7) * 0.25f;
    }

    LogitArgs args;
    args.outer = shape.outer;
    args.inner = shape.inner;
    args.student = o.in_place ? grad.view : student.view;
    args.teacher = teacher.view;
    if (o.with_grad) args.grad = grad.view;
    if (o.hard) args.target = target.data();
    if (o.weighted) args.sample_weight = weight.data();
    // What a kernel leaves unwritten is NaN.
    std::vector<float> loss(o.reduction == Reduction::kNone ? rows : 1, NAN);
    prepare(grad, student, o.in_place);
    float unscale = NAN;
    std::vector<std::max_align_t> workspace(
        static_cast<size_t>(workspace_bytes(rows)) / sizeof(std::max_align_t) + 1);
    args.loss = loss.data();
    args.unscale = &unscale;
    args.workspace = workspace.data();
    RowOptions row_options;
    row_options.reduction = o.reduction;
    row_options.batch_size = shape.outer;
    const float alpha = o.hard ? o.alpha : 1.0f;
    const float squared = o.temperature * o.temperature;
    const KdLossOptions options{o.temperature,
                                alpha * squared,
                                1.0f - alpha,
                                o.smoothing,
                                o.divergence,
                                o.beta,
                                static_cast<float>(o.beta) * squared};
    const Status status = call::kd_loss(args, row_options, options).status;
    if (status == Status::kUnsupportedLayout) return;
    if (status != Status::kOk) {
      ++failures;
      return;
    }
    ++calls;
    if (o.with_grad) scale(shape, args, &unscale);
    compare(shape, o, args, loss, student, teacher, grad, alpha);
  }

  // NaN everywhere; or the student's logits, which the gradient is written over.
  static void prepare(const Logits& grad, const Logits& student, bool in_place) {
    if (in_place) {
      memcpy(grad.view.data, student.bytes.data(), student.bytes.size());
    } else {
      memset(grad.view.data, 0xff, grad.bytes.size());
    }
  }

  template <class F>
  void fill(const Logits& logits, const Shape& shape, F value) {
    for (int64_t a = 0; a < shape.outer; ++a)
      for (int64_t c = 0; c < logits.view.classes; ++c)
        for (int64_t b = 0; b < shape.inner; ++b) logits.set(a, c, b, value());
  }

  void scale(const Shape& shape, const LogitArgs& args, const float* unscale) {
    ScaleArgs scale_args;
    scale_args.outer = shape.outer;
    scale_args.inner = shape.inner;
    scale_args.grad = scale_args.out = args.grad;
    const std::vector<float> ones(static_cast<size_t>(args.rows()), 1.0f);
    scale_args.grad_loss = ones.data();
    scale_args.per_row = random() % 2 == 0;
    scale_args.unscale = unscale;
    if (call::scale_gradient(scale_args).status != Status::kOk) ++failures;
  }

  void compare(const Shape& shape, const Options& o, const LogitArgs& args,
               const std::vector<float>& loss, const Logits& student, const Logits& teacher,
               const Logits& grad, double alpha) {
    const auto weight_of = [&](int64_t row) {
      if (o.hard && args.target[row] == -100) return 0.0;
      return o.weighted ? static_cast<double>(args.sample_weight[row]) : 1.0;
    };
    double total_weight = 0.0, total = 0.0;
    for (int64_t row = 0; row < args.rows(); ++row) total_weight += weight_of(row);
    double denominator = 1.0;
    if (o.reduction == Reduction::kMean) denominator = total_weight == 0.0 ? 1.0 : total_weight;
    if (o.reduction == Reduction::kBatchMean) denominator = static_cast<double>(shape.outer);
    for (int64_t row = 0; row < args.rows(); ++row) {
      const int64_t a = row / shape.inner, b = row % shape.inner;
      const Truth truth =
          plain(o, student, teacher, a, b, o.hard ? args.target[row] : -100, alpha, weight_of(row));
      total += truth.loss;
      if (o.reduction == Reduction::kNone) expect(loss[row], truth.loss, 1e-5, "row loss");
      if (!o.with_grad || truth.is_near_a_tie) continue;
      const double grad_tolerance = student.view.dtype == Dtype::kFloat32    ? truth.float_tolerance
                                    : student.view.dtype == Dtype::kBFloat16 ? 1.6e-2
                                                                             : 2e-3;
      for (int64_t c = 0; c < student.view.classes; ++c) {
        expect(grad.get(a, c, b), truth.grad[c] / denominator, grad_tolerance, "gradient");
      }
    }
    if (o.reduction != Reduction::kNone) expect(loss[0], total / denominator, 1e-5, "loss");
  }

  struct Truth {
    double loss;
    std::vector<double> grad;
    // Rounding chooses whether p or q is larger, and with it the slope of total variation.
    bool is_near_a_tie;
    double float_tolerance;  // of the gradient
  };

  // One row by the formulas of losses/kd_loss.h.
  static Truth plain(const Options& o, const Logits& student, const Logits& teacher, int64_t a,
                     int64_t b, int64_t y, double alpha, double weight) {
    const int64_t classes = student.view.classes;
    const int64_t shared = classes < teacher.view.classes ? classes : teacher.view.classes;
    const double t = o.temperature;
    const auto probabilities = [&](const Logits& logits, int64_t count, double temperature) {
      std::vector<double> p(static_cast<size_t>(count));
      double sum = 0.0;
      for (int64_t c = 0; c < count; ++c) sum += p[c] = exp(logits.get(a, c, b) / temperature);
      for (double& x : p) x /= sum;
      return p;
    };
    Truth truth{0.0, std::vector<double>(static_cast<size_t>(classes)), false, 3e-6};
    if (weight == 0.0) return truth;
    const auto p = probabilities(teacher, shared, t), q = probabilities(student, shared, t);
    if (o.divergence == Divergence::kDecoupled) {
      add_decoupled(o, p, q, y, alpha, &truth);
    } else {
      std::vector<double> slope(static_cast<size_t>(shared));  // dD/dq
      const double soft = divergence(o, p, q, &slope);
      double mean = 0.0;
      for (int64_t c = 0; c < shared; ++c) mean += q[c] * slope[c];
      truth.loss = alpha * t * t * soft;
      for (int64_t c = 0; c < shared; ++c) truth.grad[c] = alpha * t * q[c] * (slope[c] - mean);
    }
    if (o.hard) {
      const auto q1 = probabilities(student, classes, 1.0);
      for (int64_t c = 0; c < classes; ++c) {
        const double label =
            (c == y ? 1.0 - o.smoothing : 0.0) + o.smoothing / static_cast<double>(classes);
        truth.loss -= (1.0 - alpha) * label * std::log(q1[c]);
        truth.grad[c] += (1.0 - alpha) * (q1[c] - label);
      }
    }
    truth.loss *= weight;
    for (double& g : truth.grad) g *= weight;
    for (int64_t c = 0; o.divergence == Divergence::kTotalVariation && c < shared; ++c) {
      truth.is_near_a_tie |= fabs(p[c] - q[c]) < 2e-6 * q[c];
    }
    // The gradient of reverse KL is made of differences of logits, and has their digits.
    for (int64_t c = 0; o.divergence == Divergence::kReverseKl && c < shared; ++c) {
      const double difference = fabs(student.get(a, c, b) - teacher.get(a, c, b));
      truth.float_tolerance = std::max(truth.float_tolerance, 4.0 * FLT_EPSILON * difference);
    }
    return truth;
  }

  // By the formulas of losses/decoupled_kd_loss.h.
  static void add_decoupled(const Options& o, const std::vector<double>& p,
                            const std::vector<double>& q, int64_t y, double alpha, Truth* truth) {
    const double t = o.temperature;
    double p_others = 0.0, q_others = 0.0;
    for (size_t c = 0; c < p.size(); ++c) {
      if (static_cast<int64_t>(c) == y) continue;
      p_others += p[c];
      q_others += q[c];
    }
    double of_label = p[y] * std::log(p[y] / q[y]);
    if (p.size() > 1) of_label += p_others * std::log(p_others / q_others);
    truth->loss = o.beta * t * t * of_label;
    const double difference = p_others - q_others;  // q_y - p_y
    for (size_t c = 0; c < p.size(); ++c) {
      if (static_cast<int64_t>(c) == y) {
        truth->grad[c] = o.beta * t * difference;
        continue;
      }
      const double p_c = p[c] / p_others, q_c = q[c] / q_others;
      truth->loss += alpha * t * t * p_c * std::log(p_c / q_c);
      truth->grad[c] = t * (alpha * (q_c - p_c) - o.beta * difference * q_c);
    }
  }

  static double divergence(const Options& o, const std::vector<double>& p,
                           const std::vector<double>& q, std::vector<double>* slope) {
    double sum = 0.0;
    for (size_t c = 0; c < p.size(); ++c) {
      const double beta = o.beta, m = beta * p[c] + (1.0 - beta) * q[c];
      switch (o.divergence) {
        case Divergence::kForwardKl:
          sum += p[c] * std::log(p[c] / q[c]);
          (*slope)[c] = -p[c] / q[c];
          break;
        case Divergence::kReverseKl:
          sum += q[c] * std::log(q[c] / p[c]);
          (*slope)[c] = std::log(q[c] / p[c]);
          break;
        case Divergence::kJensenShannon:
          sum += beta * p[c] * std::log(p[c] / m) + (1.0 - beta) * q[c] * std::log(q[c] / m);
          (*slope)[c] = (1.0 - beta) * std::log(q[c] / m);
          break;
        case Divergence::kTotalVariation:
          sum += 0.5 * fabs(p[c] - q[c]);
          (*slope)[c] = q[c] > p[c] ? 0.5 : q[c] < p[c] ? -0.5 : 0.0;
          break;
        case Divergence::kDecoupled:
          break;
      }
    }
    return sum;
  }
};

// Every option and every mixture of types over some shapes.
inline const Options kOptions[] = {
    {4.0f, 0.5f, 0.0f, true, false, false, true, Reduction::kBatchMean, 0},
    {1.0f, 0.5f, 0.1f, true, true, true, true, Reduction::kMean, 0},
    {2.0f, 1.0f, 0.0f, true, false, true, true, Reduction::kNone, 0},
    {3.0f, 0.2f, 0.1f, true, true, false, true, Reduction::kNone, 0},
    {3.0f, 0.0f, 0.0f, true, false, true, false, Reduction::kSum, 0},
    {2.0f, 1.0f, 0.0f, false, true, false, true, Reduction::kMean, 0},
    {4.0f, 0.5f, 0.1f, true, false, false, true, Reduction::kNone, -4},
    {3.0f, 0.5f, 0.0f, true, true, true, true, Reduction::kSum, 7},
    {1.0f, 1.0f, 0.0f, false, false, false, true, Reduction::kSum, -700},
    {2.0f, 0.7f, 0.1f, true, true, true, true, Reduction::kMean, 0, Divergence::kReverseKl},
    {1.0f, 1.0f, 0.0f, false, true, false, true, Reduction::kNone, 3, Divergence::kReverseKl},
    {4.0f, 0.5f, 0.1f, true, true, true, true, Reduction::kNone, 0, Divergence::kJensenShannon},
    {3.0f, 1.0f, 0.0f, false, false, false, true, Reduction::kSum, -4, Divergence::kJensenShannon,
     0.1f},
    {3.0f, 0.5f, 0.0f, true, false, true, true, Reduction::kMean, 0, Divergence::kTotalVariation},
    {2.0f, 1.0f, 0.0f, false, true, false, false, Reduction::kSum, 0, Divergence::kTotalVariation},
    {4.0f, 1.0f, 0.0f, true, true, true, true, Reduction::kMean, 0, Divergence::kDecoupled, 0.2},
    {4.0f, 0.6f, 0.0f, true, true, false, true, Reduction::kSum, 0, Divergence::kDecoupled, 0.2},
    {3.0f, 0.6f, 0.0f, true, false, true, true, Reduction::kNone, 0, Divergence::kDecoupled, 1.0},
    {4.0f, 0.5f, 0.1f, true, false, true, true, Reduction::kSum, 3, Divergence::kForwardKl, 0.5,
     true},
    {2.0f, 0.7f, 0.0f, true, true, false, true, Reduction::kNone, 0, Divergence::kForwardKl, 0.5,
     true},
    {3.0f, 1.0f, 0.0f, false, false, false, true, Reduction::kSum, 0, Divergence::kJensenShannon,
     0.1, true},
};
inline const Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};

template <class Shapes>
void run_all(Check& check, const Shapes& shapes) {
  for (const Shape& shape : shapes)
    for (const Options& o : kOptions)
      for (const Dtype student : kDtypes)
        for (const Dtype teacher : kDtypes) check.run(shape, student, teacher, o);
}

inline int report(const Check& check) {
  printf("%lld calls, %lld failures\n", static_cast<long long>(check.calls),
         static_cast<long long>(check.failures));
  return check.failures == 0 && check.calls > 0 ? 0 : 1;
}

}  // namespace fastkd::check
