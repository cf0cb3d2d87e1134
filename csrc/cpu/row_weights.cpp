// SPDX-License-Identifier: Apache-2.0
#include "cpu/row_weights.h"

#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace fastkd::cpu {

namespace {

// Blocks are summed one by one and then added in order: the split does not depend on the threads.
constexpr int64_t kBlock = 32768;

int64_t block_count(int64_t rows) { return (rows + kBlock - 1) / kBlock; }

struct BlockCensus {
  int64_t bad_row;
  double total_weight;
  float largest_weight;
};

BlockCensus census_of(const LogitArgs& args, const RowWeights& weights, int64_t begin,
                      int64_t end) {
  const int64_t classes = args.student.classes;
  BlockCensus census{-1, 0.0, 0.0f};
  if (args.target != nullptr) {
    bool all_valid = true;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = args.target[row];
      all_valid &= (y == weights.ignore_index) | ((y >= 0) & (y < classes));
    }
    for (int64_t row = begin; row < end && !all_valid; ++row) {
      const int64_t y = args.target[row];
      if (y != weights.ignore_index && (y < 0 || y >= classes)) {
        census.bad_row = row;
        return census;
      }
    }
  }
  if (args.sample_weight == nullptr) {
    int64_t counted = end - begin;
    if (args.target != nullptr) {
      for (int64_t row = begin; row < end; ++row)
        counted -= args.target[row] == weights.ignore_index;
    }
    census.total_weight = static_cast<double>(counted);
    census.largest_weight = 1.0f;
    return census;
  }
  for (int64_t row = begin; row < end; ++row) {
    const float weight = weights(row);
    const float magnitude = weight < 0.0f ? -weight : weight;
    census.total_weight += static_cast<double>(weight);
    if (magnitude > census.largest_weight) census.largest_weight = magnitude;
  }
  return census;
}

}  // namespace

RowCensus take_census(const LogitArgs& args, const RowWeights& weights) {
  const int64_t rows = args.rows();
  RowCensus total;
  if (args.target == nullptr && args.sample_weight == nullptr) {
    total.total_weight = static_cast<double>(rows);
    total.largest_weight = 1.0f;
    return total;
  }
  const Scratch<BlockCensus> blocks(block_count(rows));
  if (blocks.data() == nullptr) return {{Status::kOutOfMemory, -1}, 0.0, 0.0f};
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t last = (block + 1) * kBlock;
      blocks.data()[block] = census_of(args, weights, block * kBlock, last < rows ? last : rows);
    }
  };
  if (!parallel_for(block_count(rows), 1, body))
    return {{Status::kThreadPoolFailed, -1}, 0.0, 0.0f};
  for (int64_t block = 0; block < block_count(rows); ++block) {
    const BlockCensus& census = blocks.data()[block];
    if (census.bad_row >= 0) return {{Status::kTargetOutOfRange, census.bad_row}, 0.0, 0.0f};
    total.total_weight += census.total_weight;
    if (census.largest_weight > total.largest_weight) total.largest_weight = census.largest_weight;
  }
  return total;
}

double ordered_sum(const float* values, int64_t count) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += static_cast<double>(values[i + lane]);
  }
  double sum = 0.0;
  for (; i < count; ++i) sum += static_cast<double>(values[i]);
  for (double lane : lanes) sum += lane;
  return sum;
}

}  // namespace fastkd::cpu
