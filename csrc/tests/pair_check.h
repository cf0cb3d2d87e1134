// SPDX-License-Identifier: Apache-2.0
// Runs the relational losses over exactly sized heap buffers, for builds with sanitizers, and holds
// each result against plain loops in double (pair_truth.h, similarity_truth.h).
#pragma once

#include <algorithm>

#include "tests/kernel_check.h"
#include "tests/pair_truth.h"
#include "tests/similarity_truth.h"

namespace fastkd::check {

enum class Values {
  kOrdinary,
  kDuplicates,  // rows like the row before, one of them in the student only
  kNeighbours,  // rows a millionth from the row before
  kZeros,       // rows of zeros
  kAllEqual,    // the student's rows
  kSame,        // student and teacher, where their sizes are
  kOffset100,   // of all rows
  kOffset10000,
  kOfAllSizes,  // rows from 1e-4 to 1e4, some opposite to the row before and as long or shorter
  kCount,
};

struct PairShape {
  int64_t rows, features, teacher_features;
};

// Both sides, as the kernels and as the plain loops take them.
struct Batches {
  PairShape shape;
  std::vector<float> student, teacher;

  Batches(std::mt19937& random, const PairShape& shape, Values values)
      : shape(shape),
        student(static_cast<size_t>(shape.rows * shape.features)),
        teacher(static_cast<size_t>(shape.rows * shape.teacher_features)) {
    fill(random, student, shape.features, values);
    fill(random, teacher, shape.teacher_features,
         values == Values::kAllEqual ? Values::kOrdinary : values);
    if (values == Values::kSame && shape.features == shape.teacher_features) teacher = student;
    if (values == Values::kDuplicates && shape.rows > 2) {
      std::copy_n(student.begin(), shape.features, student.end() - shape.features);
    }
  }

  static void fill(std::mt19937& random, std::vector<float>& out, int64_t features, Values values) {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    const float offset = values == Values::kOffset100     ? 100.0f
                         : values == Values::kOffset10000 ? 10000.0f
                                                          : 0.0f;
    for (float& value : out) value = offset + normal(random);
    const int64_t count = static_cast<int64_t>(out.size());
    for (int64_t at = features; at < count; ++at) {
      const float before = out[static_cast<size_t>(at - features)];
      float& value = out[static_cast<size_t>(at)];
      if (values == Values::kAllEqual) value = before;
      if (values == Values::kOfAllSizes && at / features % 4 == 3) {
        value = at / features % 8 == 3 ? -before : -1e-3f * before;
        continue;
      }
      if (values == Values::kOfAllSizes) value *= size_of_row(at / features);
      if (at / features % 3 != 1) continue;
      if (values == Values::kDuplicates) value = before;
      if (values == Values::kNeighbours) value = before + 1e-6f * value;
      if (values == Values::kZeros) value = 0.0f;
    }
  }

  static float size_of_row(int64_t row) {
    return std::pow(10.0f, static_cast<float>(5 * row % 9) - 4.0f);
  }

  static Matrix matrix(const std::vector<float>& values, int64_t rows, int64_t features) {
    Matrix matrix(rows, features);
    std::copy(values.begin(), values.end(), matrix.values.begin());
    return matrix;
  }
  Matrix x() const { return matrix(student, shape.rows, shape.features); }
  Matrix y() const { return matrix(teacher, shape.rows, shape.teacher_features); }
};

// One name for both families.
inline Outcome run_loss(const PairArgs& args, const RkdOptions& o) {
  return call::rkd_loss(args, o);
}
inline Outcome run_loss(const PairArgs& args, const SimilarityOptions& o) {
  return call::similarity_loss(args, o);
}
inline int64_t workspace_of(const PairArgs& args, const RkdOptions& o) {
  return rkd_loss_workspace(args, o);
}
inline int64_t workspace_of(const PairArgs& args, const SimilarityOptions& o) {
  return similarity_loss_workspace(args, o);
}
inline Truth truth_of(const Batches& batches, const RkdOptions& o) {
  return true_rkd(batches.x(), batches.y(), o);
}
inline Truth truth_of(const Batches& batches, const SimilarityOptions& o) {
  return true_similarity(batches.x(), batches.y(), o);
}

// What a backend's tables of similarities hold.
enum class Entries { kFloats, kDoubles };

// How far a result may be from the truth: parts of the loss, of the largest gradient, and of what
// either would be if nothing cancelled; and of what a row's gradient would be, which near
// neighbours of other rows don't enlarge.
struct Tolerance {
  double loss, loss_terms, grad, grad_terms, row_terms;
};
// Distances over their mean are floats near 1: the last digit of one is 1.2e-7 of it.
inline Tolerance tolerance_of(const RkdOptions&, Entries) { return {1e-6, 1e-7, 1e-6, 3e-7, 1e-4}; }
inline Tolerance tolerance_of(const SimilarityOptions&, Entries entries) {
  if (entries == Entries::kDoubles) return {1e-6, 1e-14, 1e-6, 3e-7, 1e-5};
  return {1e-6, 3e-8, 1e-6, 5e-7, 1e-5};  // slopes of tables that nearly agree cancel, too
}

class PairCheck {
 public:
  PairCheck(Check& check, Entries entries) : check_(check), entries_(entries) {}

  template <class Options>
  void run(const PairShape& shape, Values values, const Options& o, bool with_grad) {
    const Batches batches(check_.random, shape, values);
    const Result result = call(batches, o, with_grad);
    const Truth truth = truth_of(batches, o);
    const Tolerance tolerance = tolerance_of(o, entries_);
    const double loss_room =
        tolerance.loss * fabs(truth.loss) + tolerance.loss_terms * truth.terms + 1e-30;
    const double loss_error = fabs(static_cast<double>(result.loss) - truth.loss) / loss_room;
    double largest = 0.0, terms = 0.0, grad_error = 0.0;
    for (const double g : truth.grad.values) largest = std::max(largest, fabs(g));
    for (const double size : truth.sizes) terms = std::max(terms, size);
    const double grad_room = tolerance.grad * largest + tolerance.grad_terms * terms + 1e-30;
    const bool same = values == Values::kSame && shape.features == shape.teacher_features;
    const bool certain = same || !truth.kinks;
    for (size_t at = 0; at < result.grad.size(); ++at) {
      if (!certain && std::isfinite(result.grad[at])) continue;
      const double error = fabs(static_cast<double>(result.grad[at]) - truth.grad.values[at]);
      const double size = truth.sizes[at / static_cast<size_t>(shape.features)];
      const double room = std::min(grad_room, tolerance.row_terms * size + 1e-30);
      if (!(error / room <= grad_error)) grad_error = error / room;
    }
    if (!(loss_error <= 1.0) || !(grad_error <= 1.0)) {
      fail("%g and %g times too far: loss %.9g, expected %.9g", loss_error, grad_error,
           static_cast<double>(result.loss), truth.loss, batches, values, o);
    }
    worst_loss = std::max(worst_loss, loss_error);
    worst_grad = std::max(worst_grad, grad_error);
  }

  // A number that is none, on either side, must come out everywhere.
  template <class Options>
  void run_poisoned(const PairShape& shape, float poison, bool of_teacher, const Options& o) {
    Batches batches(check_.random, shape, Values::kOrdinary);
    std::vector<float>& side = of_teacher ? batches.teacher : batches.student;
    side[check_.random() % side.size()] = poison;
    const Result result = call(batches, o, true);
    bool all = std::isnan(result.loss);
    for (const float g : result.grad) all = all && std::isnan(g);
    if (all) return;
    fail("poison (%g, %g) is lost: loss %g, gradient %g", static_cast<double>(poison),
         of_teacher ? 1.0 : 0.0, static_cast<double>(result.loss),
         static_cast<double>(result.grad[0]), batches, Values::kOrdinary, o);
  }

  double worst_loss = 0.0, worst_grad = 0.0;  // in units of what is allowed

 private:
  struct alignas(64) Line {
    uint8_t bytes[64];
  };

  struct Result {
    float loss = -7e33f;  // as nobody writes it
    std::vector<float> grad;
  };

  template <class Options>
  Result call(const Batches& batches, const Options& o, bool with_grad) {
    Result result;
    result.grad.assign(with_grad ? batches.student.size() : 0, -7e33f);
    PairArgs args;
    args.rows = batches.shape.rows;
    args.student = {batches.student.data(), batches.shape.features};
    args.teacher = {batches.teacher.data(), batches.shape.teacher_features};
    args.loss = &result.loss;
    args.with_grad = with_grad;
    args.grad = with_grad ? result.grad.data() : nullptr;
    std::vector<Line> workspace(static_cast<size_t>(workspace_of(args, o) + 63) / sizeof(Line));
    memset(static_cast<void*>(workspace.data()), 0xff, workspace.size() * sizeof(Line));
    args.workspace = workspace.data();
    ++check_.calls;
    if (run_loss(args, o).status != Status::kOk) ++check_.failures;
    return result;
  }

  static void describe(const RkdOptions& o) {
    printf("rkd_loss, weights %g and %g, criterion %d, reduction %d, squared %d\n",
           o.distance_weight, o.angle_weight, static_cast<int>(o.criterion),
           static_cast<int>(o.reduction), o.squared ? 1 : 0);
  }
  static void describe(const SimilarityOptions& o) {
    printf("similarity_loss %d, criterion %d, reduction %d\n", static_cast<int>(o.loss),
           static_cast<int>(o.criterion), static_cast<int>(o.reduction));
  }

  template <class Options>
  void fail(const char* format, double a, double b, double c, double d, const Batches& batches,
            Values values, const Options& o) {
    if (++check_.failures > 20) return;
    printf(format, a, b, c, d);
    printf("; %lld x %lld and %lld, values %d, ", static_cast<long long>(batches.shape.rows),
           static_cast<long long>(batches.shape.features),
           static_cast<long long>(batches.shape.teacher_features), static_cast<int>(values));
    describe(o);
  }

  Check& check_;
  Entries entries_;
};

// ---- what is run: every value of every option, and every two of them together somewhere ----

constexpr Criterion kCriteria[] = {Criterion::kSmoothL1, Criterion::kL1, Criterion::kL2};
constexpr PairReduction kReductions[] = {PairReduction::kMean, PairReduction::kSum,
                                         PairReduction::kMeanDistinct};

inline RkdOptions rkd_options(int64_t index) {
  constexpr double kWeights[][2] = {{25.0, 50.0}, {1.0, 0.0}, {0.0, 2.0},
                                    {0.5, 1.0},   {3.0, 0.0}, {0.0, 0.0}};
  RkdOptions o;
  o.distance_weight = kWeights[index % 6][0];
  o.angle_weight = kWeights[index % 6][1];
  o.criterion = kCriteria[index % 3];
  o.beta = index % 2 == 0 ? 1.0f : 0.2f;
  o.reduction = kReductions[index / 3 % 3];
  o.squared = index % 7 == 3;
  return o;
}

inline SimilarityOptions similarity_options(int64_t index) {
  SimilarityOptions o;
  o.loss = static_cast<Similarity>(index % 4);
  o.reduction = kReductions[index / 4 % 3];
  o.criterion = kCriteria[index % 3];
  o.beta = index % 2 == 0 ? 1.0 : 0.1;
  if (o.loss == Similarity::kPkt) o.eps = 1e-7;
  return o;
}

inline void run_poison(PairCheck& check) {
  for (const float poison : {NAN, INFINITY, -INFINITY}) {
    for (const bool of_teacher : {false, true}) {
      for (int64_t index = 0; index < 5; ++index) {
        check.run_poisoned({5, 7, 3}, poison, of_teacher, rkd_options(index));
        check.run_poisoned({5, 7, 3}, poison, of_teacher, similarity_options(index));
      }
    }
  }
}

// brief: for tools that slow everything down fifty times.
inline void run_pairs(Check& check, Entries entries, bool brief) {
  constexpr PairShape kShapes[] = {{1, 1, 1},    {2, 1, 3},    {3, 3, 1},   {5, 16, 40},
                                   {16, 33, 16}, {17, 40, 3},  {33, 3, 16}, {40, 1, 1},
                                   {33, 16, 31}, {65, 100, 9}, {65, 40, 40}};
  constexpr PairShape kFewShapes[] = {{1, 3, 2}, {3, 1, 33}, {17, 35, 3}, {35, 2, 2}};
  check.random.seed(0);
  PairCheck pairs(check, entries);
  int64_t index = 0;
  const auto run_shape = [&](const PairShape& shape) {
    const int64_t rounds = brief || shape.rows > 40 ? 1 : 3;
    for (int64_t round = 0; round < rounds; ++round) {
      for (int v = brief ? static_cast<int>(index % 2) : 0; v < static_cast<int>(Values::kCount);
           v += brief ? 2 : 1) {
        pairs.run(shape, static_cast<Values>(v), rkd_options(index), index % 4 != 3);
        pairs.run(shape, static_cast<Values>(v), similarity_options(index), index % 5 != 3);
        ++index;
      }
    }
  };
  for (const PairShape& shape : kFewShapes) run_shape(shape);
  run_poison(pairs);
  if (brief) return;
  for (const PairShape& shape : kShapes) run_shape(shape);
}

}  // namespace fastkd::check
