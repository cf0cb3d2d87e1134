// SPDX-License-Identifier: Apache-2.0
// Runs topk_kd_loss over exactly sized heap buffers and holds it against a plain loop in double.
#pragma once

#include <algorithm>
#include <numeric>

#include "tests/kernel_check.h"

namespace fastkd::check {

struct TopKOptions {
  Tail tail;
  bool logits;
  float temperature, alpha, smoothing;
  bool hard, with_grad;
  bool in_place = false;
};

inline const TopKOptions kTopKOptions[] = {
    {Tail::kBucket, false, 1.0f, 0.5f, 0.0f, true, true},
    {Tail::kBucket, false, 3.0f, 0.5f, 0.1f, true, true},
    {Tail::kBucket, false, 2.0f, 1.0f, 0.0f, false, true},
    {Tail::kTruncate, false, 4.0f, 0.7f, 0.1f, true, true},
    {Tail::kRenormalizeTeacher, false, 1.0f, 0.5f, 0.0f, true, true},
    {Tail::kRenormalizeTeacher, true, 3.0f, 0.5f, 0.0f, true, false},
    {Tail::kRenormalize, true, 2.0f, 0.5f, 0.0f, true, true},
    {Tail::kRenormalize, false, 3.0f, 1.0f, 0.0f, false, true},
    {Tail::kBucket, false, 2.0f, 0.5f, 0.1f, true, true, true},
};

class TopKCheck {
 public:
  TopKCheck(Check& check, const Shape& shape, Dtype dtype, int64_t count,
            const TopKOptions& options)
      : check_(check),
        shape_(shape),
        o_(options),
        rows_(shape.outer * shape.inner),
        count_(count),
        student_(dtype, shape, shape.classes),
        grad_(dtype, shape, shape.classes),
        values_(static_cast<size_t>(rows_ * count)),
        indices_(static_cast<size_t>(rows_ * count)),
        target_(static_cast<size_t>(rows_)) {}

  void run() {
    make_inputs();
    LogitArgs args;
    args.outer = shape_.outer;
    args.inner = shape_.inner;
    args.student = args.teacher = o_.in_place ? grad_.view : student_.view;
    if (o_.with_grad) args.grad = grad_.view;
    if (o_.hard) args.target = target_.data();
    std::vector<float> loss(static_cast<size_t>(rows_), NAN);  // what stays unwritten is NaN
    Check::prepare(grad_, student_, o_.in_place);
    std::vector<std::max_align_t> workspace(
        static_cast<size_t>(workspace_bytes(rows_)) / sizeof(std::max_align_t) + 1);
    args.loss = loss.data();
    args.workspace = workspace.data();
    float unscale = 1.0f;
    args.unscale = &unscale;
    RowOptions rows;
    rows.reduction = Reduction::kNone;
    const float alpha = o_.hard ? o_.alpha : 1.0f;
    const TopKKdLossOptions options{o_.temperature, alpha,   1.0f - alpha,
                                    o_.smoothing,   o_.tail, o_.logits};
    const NamedClasses named{values_.data(), indices_.data(), count_};
    if (call::topk_kd_loss(args, named, rows, options).status != Status::kOk) {
      ++check_.failures;
      return;
    }
    ++check_.calls;
    if (o_.with_grad) check_.scale(shape_, args, &unscale);
    for (int64_t row = 0; row < rows_; ++row) compare(row, loss[row], alpha);
  }

 private:
  void make_inputs() {
    std::normal_distribution<float> normal(0.0f, 3.0f);
    check_.fill(student_, shape_, [&] { return normal(check_.random); });
    std::vector<int64_t> classes(static_cast<size_t>(shape_.classes));
    std::iota(classes.begin(), classes.end(), 0);
    for (int64_t row = 0; row < rows_; ++row) {
      std::shuffle(classes.begin(), classes.end(), check_.random);
      target_[row] = row % 4 == 3 ? -100 : static_cast<int64_t>(check_.random() % shape_.classes);
      for (int64_t k = 0; k < count_; ++k) {
        const float logit = normal(check_.random);
        const float told = o_.logits ? logit : -std::log(2.0f * count_) - fabsf(logit);
        const bool names = k < shape_.classes && (k == 0 || check_.random() % 4 != 0);
        values_[row * count_ + k] = names ? told : -INFINITY;
        indices_[row * count_ + k] = k < shape_.classes ? classes[k] : -1;  // not looked at
      }
    }
  }

  void compare(int64_t row, float loss, double alpha) {
    const int64_t a = row / shape_.inner, b = row % shape_.inner, classes = shape_.classes;
    std::vector<double> grad(static_cast<size_t>(classes));
    double truth = 0.0;
    if (!o_.hard || target_[row] != -100) truth = plain(row, a, b, alpha, grad);
    check_.expect(loss, truth, 1e-5, "top-k row loss");
    if (!o_.with_grad) return;
    const Dtype dtype = student_.view.dtype;
    const double tolerance = dtype == Dtype::kFloat32    ? 3e-6
                             : dtype == Dtype::kBFloat16 ? 1.6e-2
                                                         : 2e-3;
    for (int64_t c = 0; c < classes; ++c) {
      check_.expect(grad_.get(a, c, b), grad[c], tolerance, "top-k gradient");
    }
  }

  // One row by the formulas of losses/topk_kd_loss.h.
  double plain(int64_t row, int64_t a, int64_t b, double alpha, std::vector<double>& grad) const {
    const int64_t classes = shape_.classes;
    const double t = o_.temperature;
    std::vector<double> p(static_cast<size_t>(classes)), q(p), q1(p);
    std::vector<bool> named(static_cast<size_t>(classes));
    double of_p = 0.0, of_q = 0.0, of_named = 0.0, of_q1 = 0.0;
    for (int64_t k = 0; k < count_; ++k) {
      const float value = values_[row * count_ + k];
      if (value == -INFINITY) continue;
      const int64_t c = indices_[row * count_ + k];
      named[c] = true;
      of_p += p[c] = exp(o_.logits ? value / t : value);
    }
    for (int64_t c = 0; c < classes; ++c) {
      of_q += q[c] = exp(student_.get(a, c, b) / t);
      of_q1 += q1[c] = exp(student_.get(a, c, b));
      if (named[c]) of_named += q[c];
    }
    const bool renormalizes = o_.tail == Tail::kRenormalize || o_.tail == Tail::kRenormalizeTeacher;
    const bool named_only = o_.tail == Tail::kRenormalize;
    const double over_p = renormalizes ? of_p : 1.0, over_q = named_only ? of_named : of_q;
    const double rho = 1.0 - of_named / of_q;
    const bool has_rest = std::find(named.begin(), named.end(), false) != named.end();
    const double rest = o_.tail == Tail::kBucket && has_rest ? 1.0 - of_p : 0.0;
    const double mass = of_p / over_p + rest;
    double loss = rest == 0.0 ? 0.0 : alpha * rest * std::log(rest / rho);
    for (int64_t c = 0; c < classes; ++c) {
      const double p_c = p[c] / over_p, q_c = q[c] / over_q;
      if (named[c]) {
        loss += alpha * p_c * std::log(p_c / q_c);
        grad[c] = alpha * (mass * q_c - p_c) / t;
      } else if (!named_only) {
        grad[c] = alpha * q_c * (mass - (rest == 0.0 ? 0.0 : rest / rho)) / t;
      }
      if (!o_.hard) continue;
      const double label = (c == target_[row] ? 1.0 - o_.smoothing : 0.0) +
                           o_.smoothing / static_cast<double>(classes);
      loss -= (1.0 - alpha) * label * std::log(q1[c] / of_q1);
      grad[c] += (1.0 - alpha) * (q1[c] / of_q1 - label);
    }
    return loss;
  }

  Check& check_;
  const Shape shape_;
  const TopKOptions o_;
  const int64_t rows_, count_;
  Logits student_, grad_;
  std::vector<float> values_;
  std::vector<int64_t> indices_;
  std::vector<int64_t> target_;
};

// Rows of these shapes; `brief`: fewer of them.
inline void run_topk(Check& check, bool brief = false) {
  const Shape shapes[] = {{1, 1, 1, false, 0},    {3, 10, 5, false, 0},   {2, 300, 2, false, 1},
                          {1, 1025, 3, false, 0}, {1, 2500, 2, false, 3}, {2, 17, 2, false, 1},
                          {1, 5000, 1, false, 0}};
  check.random.seed(0);
  for (const Shape& shape : shapes) {
    if (brief && shape.classes > 1100) continue;
    for (const TopKOptions& options : kTopKOptions)
      for (const Dtype dtype : kDtypes)
        for (const int64_t count : {1, 7, 40}) {
          TopKCheck(check, shape, dtype, count, options).run();
        }
  }
}

}  // namespace fastkd::check
