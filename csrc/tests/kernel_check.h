// SPDX-License-Identifier: Apache-2.0
// Runs kernels over exactly sized heap buffers, for builds with sanitizers (python3 dev.py
// sanitize), and holds each result against a plain loop in double.
#pragma once

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include "core/dtype.h"
#include "kernels.h"

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
  std::mt19937 random{0};
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
    args.student = student.view;
    args.teacher = teacher.view;
    if (o.with_grad) args.grad = grad.view;
    if (o.hard) args.target = target.data();
    if (o.weighted) args.sample_weight = weight.data();
    // What a kernel leaves unwritten is NaN.
    std::vector<float> loss(o.reduction == Reduction::kNone ? rows : 1, NAN);
    memset(grad.bytes.data(), 0xff, grad.bytes.size());
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
    const KdLossOptions options{o.temperature, alpha * o.temperature * o.temperature, 1.0f - alpha,
                                o.smoothing};
    const Status status = kd_loss(args, row_options, options).status;
    if (status == Status::kUnsupportedLayout) return;
    if (status != Status::kOk) {
      ++failures;
      return;
    }
    ++calls;
    if (o.with_grad) scale(shape, args, &unscale);
    compare(shape, o, args, loss, student, teacher, grad, alpha);
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
    if (scale_gradient(scale_args).status != Status::kOk) ++failures;
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
    const double grad_tolerance = student.view.dtype == Dtype::kFloat32    ? 3e-6
                                  : student.view.dtype == Dtype::kBFloat16 ? 1.6e-2
                                                                           : 2e-3;
    for (int64_t row = 0; row < args.rows(); ++row) {
      const int64_t a = row / shape.inner, b = row % shape.inner;
      std::vector<double> row_grad;
      const double row_loss = plain(o, student, teacher, a, b, o.hard ? args.target[row] : -100,
                                    alpha, weight_of(row), &row_grad);
      total += row_loss;
      if (o.reduction == Reduction::kNone) expect(loss[row], row_loss, 1e-5, "row loss");
      for (int64_t c = 0; o.with_grad && c < student.view.classes; ++c) {
        expect(grad.get(a, c, b), row_grad[c] / denominator, grad_tolerance, "gradient");
      }
    }
    if (o.reduction != Reduction::kNone) expect(loss[0], total / denominator, 1e-5, "loss");
  }

  // One row by the formulas of losses/kd_loss.h.
  static double plain(const Options& o, const Logits& student, const Logits& teacher, int64_t a,
                      int64_t b, int64_t y, double alpha, double weight,
                      std::vector<double>* grad) {
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
    grad->assign(static_cast<size_t>(classes), 0.0);
    if (weight == 0.0) return 0.0;
    const auto p = probabilities(teacher, shared, t), q = probabilities(student, shared, t);
    double loss = 0.0;
    for (int64_t c = 0; c < shared; ++c) {
      loss += alpha * t * t * p[c] * std::log(p[c] / q[c]);
      (*grad)[c] += alpha * t * (q[c] - p[c]);
    }
    if (o.hard) {
      const auto q1 = probabilities(student, classes, 1.0);
      for (int64_t c = 0; c < classes; ++c) {
        const double label =
            (c == y ? 1.0 - o.smoothing : 0.0) + o.smoothing / static_cast<double>(classes);
        loss -= (1.0 - alpha) * label * std::log(q1[c]);
        (*grad)[c] += (1.0 - alpha) * (q1[c] - label);
      }
    }
    for (double& g : *grad) g *= weight;
    return weight * loss;
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
