// SPDX-License-Identifier: Apache-2.0
// What a kernel of a relational loss is given: two batches of embeddings, row i of both from the
// same example. Plain pointers and sizes; no ownership.
#pragma once

#include "core/logit_args.h"

namespace fastkd {

struct Embeddings {
  const float* data = nullptr;  // [rows, features], contiguous
  int64_t features = 0;
};

struct PairArgs {
  int64_t rows = 0;  // N >= 1
  Embeddings student;
  Embeddings teacher;
  bool with_grad = false;     // whether there is a gradient to write
  float* loss = nullptr;      // [1]
  float* grad = nullptr;      // [rows, student.features], where with_grad
  void* workspace = nullptr;  // as many bytes as the kernel's own function says, 64-byte aligned
  Queue queue;
};

// How a student's relation is held against the teacher's.
enum class Criterion : int32_t { kSmoothL1 = 0, kL1 = 1, kL2 = 2 };

// What divides the sum over all ordered pairs (or triplets).
enum class PairReduction : int32_t {
  kMean = 0,          // N^2 (N^3): entries of an index with itself count as terms
  kSum = 1,           // 1
  kMeanDistinct = 2,  // N (N - 1) (times N - 2): only distinct indices count
};

// 1 / denominator of a relation between `order` indices; 0 where there is nothing to divide.
FASTKD_HOST_DEVICE double inverse_relations(PairReduction reduction, int64_t rows, int order) {
  const double n = static_cast<double>(rows);
  if (reduction == PairReduction::kSum) return 1.0;
  double count = 1.0;
  for (int i = 0; i < order; ++i) {
    count *= reduction == PairReduction::kMean ? n : n - static_cast<double>(i);
  }
  return count > 0.0 ? 1.0 / count : 0.0;
}

// rkd_distance_loss, rkd_angle_loss and their sum; a part that weighs 0 is not computed.
struct RkdOptions {
  double distance_weight = 25.0;
  double angle_weight = 50.0;
  Criterion criterion = Criterion::kSmoothL1;
  double beta = 1.0;  // of kSmoothL1: where the square becomes the absolute value
  PairReduction reduction = PairReduction::kMean;
  bool squared = false;  // squared distances in the distance loss
  double eps = 1e-12;    // floor of the squared distances, and of the norms in the angle loss
};

enum class Similarity : int32_t {
  kSimilarityPreserving = 0,
  kCosine = 1,
  kPkt = 2,
  kCorrelation = 3
};

// The losses between tables of similarities; each reads what its formula has.
struct SimilarityOptions {
  Similarity loss = Similarity::kCosine;
  PairReduction reduction = PairReduction::kMean;
  Criterion criterion = Criterion::kSmoothL1;  // kCosine
  double beta = 1.0;                           // kCosine
  double gamma = 0.4;                          // kCorrelation: exp(-gamma |x - y|^2)
  double eps = 1e-12;  // kPkt: added to the probabilities; the others: floor of the norms
};

}  // namespace fastkd
