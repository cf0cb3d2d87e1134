// SPDX-License-Identifier: Apache-2.0
// Runs attention transfer over exactly sized heap buffers, for builds with sanitizers, and holds
// maps' gradients, loss and gradient against plain loops in double.
#pragma once

#include <stdlib.h>

#include <algorithm>

#include "tests/kernel_check.h"

namespace fastkd::check {

// Features [samples, channels, positions] that begin `skip` elements into their buffer.
struct Features : Logits {
  Features(Dtype dtype, const Shape& shape, int64_t channels, int64_t skip)
      : Logits(dtype, shape, channels) {
    bytes.resize(bytes.size() + static_cast<size_t>(skip * element_size(dtype)));
    bytes.shrink_to_fit();
    view.data = bytes.data() + skip * element_size(dtype);
  }
};

// Memory as the kernels ask for it, and not a byte more; NaN where nobody has written.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    if (posix_memalign(&data_, 64, static_cast<size_t>(bytes)) != 0) abort();
    memset(data_, 0xff, static_cast<size_t>(bytes));
  }
  ~Workspace() { free(data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

struct AttentionCase {
  Shape student;  // outer: samples, classes: channels, inner: positions
  int64_t teacher_channels;
  bool teacher_columns;  // positions contiguous
  Dtype student_dtype, teacher_dtype;
  double power;
  bool mean, with_grad;
  bool grad_turned;  // the gradient's layout is not the student's
  int64_t skip;      // elements before either tensor, so that addresses are odd
  enum Values { kOrdinary, kZeroMaps, kEqual, kNan, kTiny } values;
};

// How far results were from the truth, in units of what is allowed.
struct Worst {
  double loss = 0.0, map_grad = 0.0, grad = 0.0;
};

class AttentionRun {
 public:
  AttentionRun(Check& check, Worst& worst, const AttentionCase& c)
      : check_(check),
        worst_(worst),
        c_(c),
        samples_(c.student.outer),
        positions_(c.student.inner),
        student_(c.student_dtype, c.student, c.student.classes, c.skip),
        teacher_(c.teacher_dtype, teacher_shape(c), c.teacher_channels, c.skip),
        grad_(c.student_dtype, grad_shape(c), c.student.classes, c.skip),
        map_grad_(static_cast<size_t>(samples_ * positions_), NAN) {
    fill();
  }

  void run() {
    ++check_.calls;
    float loss = NAN;
    if (!forward(samples_, student_.view, teacher_.view, c_.with_grad ? map_grad_.data() : nullptr,
                 &loss)) {
      return;
    }
    float other = NAN;  // without and with a gradient the loss is the same
    forward(samples_, student_.view, teacher_.view, nullptr, &other);
    if (memcmp(&loss, &other, sizeof(loss)) != 0) fail("loss without a gradient");
    compare_loss(static_cast<double>(loss));
    if (!c_.with_grad) return;
    last_sample_alone();
    backward();
    for (int64_t n = 0; n < samples_; ++n) compare_gradient(n);
  }

 private:
  static Shape teacher_shape(const AttentionCase& c) {
    Shape shape = c.student;
    shape.classes = c.teacher_channels;
    shape.columns = c.teacher_columns;
    return shape;
  }

  static Shape grad_shape(const AttentionCase& c) {
    Shape shape = c.student;
    shape.columns = c.student.columns != c.grad_turned;
    return shape;
  }

  void fail(const char* what) {
    ++check_.failures;
    printf("(%lld, %lld, %lld) p = %g: %s\n", static_cast<long long>(samples_),
           static_cast<long long>(c_.student.classes), static_cast<long long>(positions_), c_.power,
           what);
  }

  void fill() {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    // Zeros too, as behind a ReLU.
    const auto value = [&] { return check_.random() % 6 == 0 ? 0.0f : normal(check_.random); };
    // Norms below their floor, and subnormal numbers.
    const float tiny = c_.power < 1.0 ? 1e-39f : 1e-7f;
    const float scale = c_.values == AttentionCase::kTiny ? tiny : 1.0f;
    check_.fill(student_, c_.student, [&] { return scale * value(); });
    check_.fill(teacher_, teacher_shape(c_), value);
    memset(grad_.bytes.data(), 0xff, grad_.bytes.size());
    const auto all = [&](const Features& features, int64_t n, auto of) {
      for (int64_t k = 0; k < features.view.classes; ++k)
        for (int64_t i = 0; i < positions_; ++i) features.set(n, k, i, of(k, i));
    };
    if (c_.values == AttentionCase::kZeroMaps) {
      all(student_, 0, [](int64_t, int64_t) { return 0.0f; });
      all(teacher_, samples_ - 1, [](int64_t, int64_t) { return 0.0f; });
    }
    for (int64_t n = 0; c_.values == AttentionCase::kEqual && n < samples_; ++n) {
      all(teacher_, n, [&](int64_t k, int64_t i) { return student_.get(n, k, i); });
    }
    if (c_.values == AttentionCase::kNan) {
      student_.set(0, c_.student.classes / 2, positions_ / 2, NAN);
    }
  }

  bool forward(int64_t samples, const LogitView& student, const LogitView& teacher, float* map_grad,
               float* loss) {
    AttentionArgs args;
    args.samples = samples;
    args.positions = positions_;
    args.student = student;
    args.teacher = teacher;
    args.power = c_.power;
    args.mean = c_.mean;
    args.loss = loss;
    args.with_grad = map_grad != nullptr;
    args.map_grad = map_grad;
    const Workspace workspace(attention_transfer_loss_workspace(args));
    args.workspace = workspace.data();
    if (call::attention_transfer_loss(args).status == Status::kOk) return true;
    fail("refused");
    return false;
  }

  // What it is in the batch, bit for bit.
  void last_sample_alone() {
    if (c_.mean) return;
    LogitView student = student_.view, teacher = teacher_.view;
    const auto move = [&](LogitView& view) {
      view.data = static_cast<uint8_t*>(view.data) +
                  (samples_ - 1) * view.stride_outer * element_size(view.dtype);
    };
    move(student);
    move(teacher);
    std::vector<float> map_grad(static_cast<size_t>(positions_), NAN);
    float loss = NAN;
    forward(1, student, teacher, map_grad.data(), &loss);
    if (memcmp(map_grad.data(), map_grad_.data() + (samples_ - 1) * positions_,
               map_grad.size() * sizeof(float)) != 0) {
      fail("a sample depends on its batch");
    }
  }

  void backward() {
    AttentionGradArgs args;
    args.samples = samples_;
    args.positions = positions_;
    args.student = student_.view;
    args.grad = grad_.view;
    args.power = c_.power;
    args.map_grad = map_grad_.data();
    const std::vector<float> grad_loss(1, kGradLoss);
    args.grad_loss = grad_loss.data();
    if (call::attention_transfer_gradient(args).status != Status::kOk) fail("backward refused");
  }

  double scale() const { return c_.mean ? 1.0 / static_cast<double>(samples_ * positions_) : 1.0; }

  std::vector<double> attention(const Features& features, int64_t n, double* norm) const {
    std::vector<double> q(static_cast<size_t>(positions_));
    double squares = 0.0;
    for (int64_t i = 0; i < positions_; ++i) {
      for (int64_t k = 0; k < features.view.classes; ++k) {
        q[i] += std::pow(std::fabs(static_cast<double>(features.get(n, k, i))), c_.power);
      }
      q[i] /= static_cast<double>(features.view.classes);
      squares += q[i] * q[i];
    }
    *norm = std::sqrt(squares);
    for (double& a : q) a /= *norm < 1e-12 ? 1e-12 : *norm;
    return q;
  }

  double sample_loss(int64_t n) const {
    double norm = 0.0, sum = 0.0;
    const auto s = attention(student_, n, &norm), t = attention(teacher_, n, &norm);
    for (int64_t i = 0; i < positions_; ++i) sum += (s[i] - t[i]) * (s[i] - t[i]);
    return sum;
  }

  void compare_loss(double loss) {
    double truth = 0.0;
    for (int64_t n = 0; n < samples_; ++n) truth += sample_loss(n);
    if (c_.values == AttentionCase::kNan) {
      if (loss == loss) fail("NaN is lost in the loss");
      return;
    }
    if (equal_bits()) {
      if (loss != 0.0) fail("equal features have a loss");
      return;
    }
    // A difference errs as the maps do, which are at most 1 in norm.
    const double root = std::sqrt(truth * static_cast<double>(samples_));
    expect(loss / scale(), truth, 2e-6 * root + 1e-6 * truth + 1e-12, &worst_.loss, "loss");
  }

  bool equal_bits() const {
    return c_.values == AttentionCase::kEqual && c_.student_dtype == c_.teacher_dtype &&
           c_.student.columns == c_.teacher_columns;
  }

  void compare_gradient(int64_t n) {
    double norm = 0.0, unused = 0.0, dot = 0.0, largest = 0.0;
    const auto t = attention(teacher_, n, &unused), s = attention(student_, n, &norm);
    std::vector<double> dq(s.size());
    for (size_t i = 0; i < s.size(); ++i) dot += (s[i] - t[i]) * s[i];
    for (size_t i = 0; i < s.size(); ++i) {
      dq[i] = norm < 1e-12 ? 2.0 * scale() / 1e-12 * (s[i] - t[i])
                           : 2.0 * scale() / norm * (s[i] - t[i] - s[i] * dot);
    }
    // Differences of maps lose digits to the maps themselves.
    for (size_t i = 0; i < s.size(); ++i) {
      largest = std::max(largest, 2.0 * scale() / std::max(norm, 1e-12) * std::max(s[i], t[i]));
    }
    const bool nan = c_.values == AttentionCase::kNan && n == 0;
    const double rounding = c_.student_dtype == Dtype::kFloat32    ? 1.2e-7
                            : c_.student_dtype == Dtype::kBFloat16 ? 4e-3
                                                                   : 5e-4;
    for (int64_t i = 0; i < positions_; ++i) {
      const double m = static_cast<double>(map_grad_[n * positions_ + i]);
      if (!nan) expect(m, dq[i], 1e-6 * largest, &worst_.map_grad, "dloss/dmap");
      for (int64_t k = 0; k < c_.student.classes; ++k) {
        const double g = static_cast<double>(grad_.get(n, k, i));
        if (nan) {
          if (g == g) fail("NaN is lost in the gradient");
          continue;
        }
        const double x = static_cast<double>(student_.get(n, k, i));
        const double slope = x == 0.0 ? 0.0
                                      : std::copysign(std::pow(std::fabs(x), c_.power - 1.0), x) *
                                            c_.power * static_cast<double>(kGradLoss) /
                                            static_cast<double>(c_.student.classes);
        const double truth = dq[i] * slope;
        const double allowed =
            2e-6 * largest * std::fabs(slope) + rounding * std::fabs(truth) + kSmallestHalf;
        constexpr double kOverflow = 6e4;
        if (c_.student_dtype == Dtype::kFloat16 && std::fabs(truth) > kOverflow) continue;
        if ((equal_bits() || x == 0.0) && g != 0.0) fail("the gradient should be 0");
        expect(g, truth, allowed, &worst_.grad, "gradient");
      }
    }
  }

  void expect(double value, double truth, double allowed, double* worst, const char* what) {
    const double error = value == truth ? 0.0 : std::fabs(value - truth) / allowed;
    if (error <= 1.0) {
      *worst = std::max(*worst, error);
      return;
    }
    if (check_.failures++ > 20) return;
    printf("(%lld, %lld, %lld) p = %g: %s %.9g, expected %.9g within %.2g\n",
           static_cast<long long>(samples_), static_cast<long long>(c_.student.classes),
           static_cast<long long>(positions_), c_.power, what, value, truth, allowed);
  }

  static constexpr float kGradLoss = 37.5f;
  static constexpr double kSmallestHalf = 5.97e-8;

  Check& check_;
  Worst& worst_;
  const AttentionCase& c_;
  const int64_t samples_, positions_;
  Features student_, teacher_, grad_;
  std::vector<float> map_grad_;
};

// Every layout and power over shapes with short and partial vectors, tiles, and runs of channels;
// types, addresses, values and options take turns.
inline void run_attention(Check& check, bool brief = false) {
  constexpr Shape kShapes[] = {
      {1, 1, 1, true, 0},    {3, 5, 7, true, 1},    {2, 7, 16, true, 0},    {2, 9, 17, true, 0},
      {2, 70, 49, true, 0},  {3, 130, 20, true, 3}, {2, 16, 64, true, 0},   {2, 13, 196, true, 0},
      {2, 20, 1, true, 2},   {2, 1, 33, true, 0},   {4, 67, 8, true, 8},    {1, 1100, 5, true, 0},
      {1, 2, 1100, true, 0}, {9, 3, 2090, true, 0}, {1, 2200, 17, true, 0},
  };
  constexpr double kPowers[] = {2.0, 1.0, 3.0, 4.0, 2.5, 0.5};
  constexpr AttentionCase::Values kValues[] = {AttentionCase::kOrdinary, AttentionCase::kZeroMaps,
                                               AttentionCase::kOrdinary, AttentionCase::kEqual,
                                               AttentionCase::kTiny,     AttentionCase::kNan,
                                               AttentionCase::kOrdinary};
  check.random.seed(0);
  Worst worst;
  unsigned turn = 0;
  for (const Shape& shape : kShapes) {
    if (brief && shape.outer * shape.classes * shape.inner > 5000) continue;
    for (const double power : kPowers) {
      for (int layouts = 0; layouts < 4; ++layouts, ++turn) {
        if (brief && turn % 3 != 0) continue;
        AttentionCase c{};
        c.student = shape;
        c.student.columns = layouts % 2 == 0;
        c.teacher_columns = layouts / 2 == 0;
        c.values = kValues[turn % 7];
        c.teacher_channels = c.values == AttentionCase::kEqual ? shape.classes
                             : turn % 5 == 0                   ? shape.classes + 19
                                                               : shape.classes;
        c.student_dtype = kDtypes[turn / 2 % 3];
        c.teacher_dtype = turn % 4 == 3 ? kDtypes[turn / 6 % 3] : c.student_dtype;
        c.power = power;
        c.mean = turn % 2 == 0;
        c.with_grad = turn % 11 != 0;
        c.grad_turned = turn % 13 == 1;
        c.skip = turn / 3 % 4;
        AttentionRun(check, worst, c).run();
      }
    }
  }
  printf("attention: worst errors, 1 is allowed: loss %.2g, dloss/dmap %.2g, gradient %.2g\n",
         worst.loss, worst.map_grad, worst.grad);
}

}  // namespace fastkd::check
