// SPDX-License-Identifier: Apache-2.0
// For a vertex j the angle between i and k is that between k and i, so only i < k is visited: lanes
// go along k, an inner loop has one vertex and two neighbours i.
//
// A triplet adds to the rows j and i of the gradient's tables. Vertices are cut into blocks, and
// the neighbours i into as many sets; in round r task b has block b and set b + r, so no two tasks
// of a round write the same row, and what a row sums, and in which order, depends on N alone.
#include "cpu/triplets.h"

#include <math.h>

namespace fastkd::cpu {

namespace {

constexpr int kNeighbours = 2;       // i of an inner loop
constexpr int64_t kTile = 512;       // k of an inner loop: tables of a block of vertices stay in L2
constexpr int64_t kMinBlock = 32;    // vertices
constexpr int64_t kMaxBlocks = 128;  // threads that can work at once

int64_t block_count(int64_t rows) {
  if (rows < 3 * kMinBlock) return 1;  // waking a thread takes longer
  const int64_t blocks = rows / kMinBlock;
  return blocks < 1 ? 1 : blocks > kMaxBlocks ? kMaxBlocks : blocks;
}

// The arms of one example, as plain pointers: stores to other tables don't make the compiler load
// them anew.
struct SplitRow {
  const float *high, *low, *inverse;

  SplitRow() = default;
  SplitRow(const SplitTable& table, int64_t i)
      : high(table.high.row(i)), low(table.low.row(i)), inverse(table.inverse.row(i)) {}

  Arm<Vec> arms(int64_t k) const {
    return {Vec::load(high + k), Vec::load(low + k), Vec::load(inverse + k)};
  }
  Arm<Vec> half_arm(int64_t i) const { return {Vec(high[i]), Vec(low[i]), Vec(0.5f * inverse[i])}; }
};

constexpr float kZerosThenOnes[2 * kLanes] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                              1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// Ones in the lanes above `lane`.
Vec lanes_above(int lane) { return Vec::load(kZerosThenOnes + kLanes - 1 - lane); }

// One vertex and two neighbours i, against sixteen neighbours k at a time.
template <class C, bool kWithGrad>
struct InnerLoop {
  struct Neighbour {
    SplitRow student, teacher;            // from i to k
    Arm<Vec> student_half, teacher_half;  // from the vertex to i
    float* ends;                          // row i
    Vec across, along;
  };

  C criterion;
  SplitRow student, teacher;  // from the vertex to k
  float *across, *along;      // row of the vertex
  Neighbour i[kNeighbours];
  Vec values;

  InnerLoop(const C& criterion, const AngleTables& tables, int64_t vertex, int64_t first)
      : criterion(criterion),
        student(tables.student, vertex),
        teacher(tables.teacher, vertex),
        across(kWithGrad ? tables.across.row(vertex) : nullptr),
        along(kWithGrad ? tables.along.row(vertex) : nullptr),
        values(0.0f) {
    for (int r = 0; r < kNeighbours; ++r) {
      i[r].student = SplitRow(tables.student, first + r);
      i[r].teacher = SplitRow(tables.teacher, first + r);
      i[r].student_half = student.half_arm(first + r);
      i[r].teacher_half = teacher.half_arm(first + r);
      i[r].ends = kWithGrad ? tables.ends.row(first + r) : nullptr;
      i[r].across = i[r].along = Vec(0.0f);
    }
  }

  // `masks` of the neighbours: 0 where a triplet is visited from elsewhere.
  template <bool kMasked>
  void visit(int64_t k, const Vec* masks) {
    const Arm<Vec> student_arm = student.arms(k), teacher_arm = teacher.arms(k);
    Vec across_k, along_k;
    if constexpr (kWithGrad) {
      across_k = Vec::load(across + k);
      along_k = Vec::load(along + k);
    }
    for (int r = 0; r < kNeighbours; ++r) {
      Arm<Vec> s = student_arm, t = teacher_arm;
      if constexpr (kMasked) {  // without a direction a triplet adds nothing
        s.inverse = s.inverse * masks[r];
        t.inverse = t.inverse * masks[r];
      }
      const Cosine<Vec> of_student = cosine_at_vertex(
          i[r].student_half, s, Vec::load(i[r].student.high + k), Vec::load(i[r].student.low + k));
      const Cosine<Vec> of_teacher = cosine_at_vertex(
          i[r].teacher_half, t, Vec::load(i[r].teacher.high + k), Vec::load(i[r].teacher.low + k));
      const auto term = AngleSlope<Vec>::of(criterion, of_student.cosine, of_teacher.cosine);
      values = criterion.add_value(values, term.slope, term.difference);
      if constexpr (kWithGrad) {
        const Vec c = term.slope, half_inverse = of_student.half_inverse;
        i[r].across = fma(c, half_inverse, i[r].across);
        i[r].along = fma(c, of_student.cosine, i[r].along);
        across_k = fma(c, half_inverse, across_k);
        along_k = fma(c, of_student.cosine, along_k);
        fma(c, half_inverse, Vec::load(i[r].ends + k)).store(i[r].ends + k);
      }
    }
    if constexpr (kWithGrad) {
      across_k.store(across + k);
      along_k.store(along + k);
    }
  }
};

template <class C, bool kWithGrad>
class Triplets {
 public:
  Triplets(const C& criterion, const AngleTables& tables, int64_t rows)
      : criterion_(criterion), tables_(tables), rows_(rows), blocks_(block_count(rows)) {}

  double task(int64_t round, int64_t block) const {
    const int64_t set = (block + round) % blocks_;
    const int64_t first = rows_ * block / blocks_, last = rows_ * (block + 1) / blocks_;
    double value = 0.0;
    for (int64_t begin = 0; begin < rows_; begin += kTile) {
      const int64_t end = begin + kTile < rows_ ? begin + kTile : rows_;
      // Sets are interleaved, so that all have long and short rows.
      for (int64_t i = set * kNeighbours; i < end; i += blocks_ * kNeighbours) {
        Vec values(0.0f);
        for (int64_t j = first; j < last; ++j) values = values + neighbours(j, i, begin, end);
        value += static_cast<double>(sum_lanes(values));
      }
    }
    return value;
  }

 private:
  // Vertex j, neighbours i and i + 1, all k > i of [begin, end).
  Vec neighbours(int64_t j, int64_t i, int64_t begin, int64_t end) const {
    InnerLoop<C, kWithGrad> loop(criterion_, tables_, j, i);
    int64_t k = i / kLanes * kLanes;
    if (k >= begin) {
      Vec masks[kNeighbours];
      for (int r = 0; r < kNeighbours; ++r) masks[r] = lanes_above(static_cast<int>(i - k) + r);
      loop.template visit<true>(k, masks);
      k += kLanes;
    } else {
      k = begin;
    }
    for (; k < end; k += kLanes) loop.template visit<false>(k, nullptr);
    if constexpr (kWithGrad) {
      for (int r = 0; r < kNeighbours; ++r) {
        loop.across[i + r] += sum_lanes(loop.i[r].across);
        loop.along[i + r] += sum_lanes(loop.i[r].along);
      }
    }
    return loop.values;
  }

  C criterion_;
  AngleTables tables_;
  int64_t rows_, blocks_;
};

// All triplets with i < k.
template <bool kWithGrad, class C>
double sum_triplets(const C& criterion, const AngleTables& tables, int64_t rows, bool* ok) {
  const Triplets<C, kWithGrad> triplets(criterion, tables, rows);
  const int64_t blocks = block_count(rows);
  for (int64_t round = 0; round < blocks; ++round) {
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        tables.partials[round * blocks + block] = triplets.task(round, block);
      }
    };
    *ok &= parallel_for(blocks, 1, body);
  }
  double sum = 0.0;
  for (int64_t task = 0; task < blocks * blocks; ++task) sum += tables.partials[task];
  return sum;
}

// Triplets with i == k: the cosine is 1 where the pair has a direction, else 0.
template <class C>
double sum_returns(const C& criterion, const AngleTables& tables, int64_t rows) {
  int64_t differing = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const float* const student = tables.student.inverse.row(i);
    const float* const teacher = tables.teacher.inverse.row(i);
    for (int64_t j = 0; j < rows; ++j) differing += (student[j] != 0.0f) != (teacher[j] != 0.0f);
  }
  const double c = criterion.slope(1.0);
  return criterion.value(c, 1.0) * static_cast<double>(differing);
}

// From the sums over triplets to dloss/dS, and to what the gradient is gathered with. Tiles of
// sixteen, because the arms (i, j) and (j, i) stand at transposed places.
void weigh_tile(const AngleTables& tables, float factor, int64_t i, int64_t j,
                const PairTable<float>& weights, bool add) {
  const auto slopes = [&](int64_t row, int64_t column) {
    const Vec inverse = Vec::load(tables.student.inverse.row(row) + column);
    return arm_slope(Vec::load(tables.across.row(row) + column),
                     Vec::load(tables.along.row(row) + column), inverse) -
           Vec::load(tables.ends.row(row) + column);
  };
  float mirrored[kLanes][kLanes];
  for (int r = 0; r < kLanes; ++r) slopes(j + r, i).store(mirrored[r]);
  for (int r = 0; r < kLanes; ++r) {
    float column[kLanes];
    for (int c = 0; c < kLanes; ++c) column[c] = mirrored[c][r];
    const Vec weight = Vec(factor) * (slopes(i + r, j) + Vec::load(column));
    float* const out = weights.row(i + r) + j;
    (add ? Vec::load(out) + weight : weight).store(out);
  }
}

void clear(const PairTable<float>& table, int64_t begin, int64_t end) {
  memset(table.row(begin), 0, static_cast<size_t>((end - begin) * table.stride) * sizeof(float));
}

}  // namespace

int64_t triplet_tasks(int64_t rows) { return block_count(rows) * block_count(rows); }

double split_squares(const PairTable<double>& squares, int64_t rows, double eps,
                     const SplitTable& out, double* of_rows, bool* ok) {
  auto find_largest = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      DoubleVec largest(0.0), sum(0.0);
      for (int64_t j = 0; j < squares.stride; j += kLanes) {
        const DoubleVec x = DoubleVec::load(squares.row(i) + j);
        largest = max(largest, x);
        sum = sum + x;
      }
      const double total = sum_lanes(sum);
      of_rows[i] = total <= DBL_MAX ? max_lanes(largest) : total;
    }
  };
  *ok &= parallel_by_cost(rows, squares.stride, find_largest);
  double largest = 0.0;
  for (int64_t i = 0; i < rows; ++i) {
    if (!(of_rows[i] <= DBL_MAX)) return static_cast<double>(NAN);
    if (of_rows[i] > largest) largest = of_rows[i];
  }
  const SquareGrid grid = SquareGrid::covering(largest, eps);
  auto split = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < squares.stride; j += kLanes) {
        const SplitOf<Vec> part = grid.split(DoubleVec::load(squares.row(i) + j));
        part.high.store(out.high.row(i) + j);
        part.low.store(out.low.row(i) + j);
        part.inverse.store(out.inverse.row(i) + j);
      }
    }
  };
  *ok &= parallel_by_cost(squares.stride, 4 * squares.stride, split);
  return grid.unit;
}

double angle_loss(const RkdOptions& options, int64_t rows, double scale, double unit,
                  const AngleTables& tables, const PairTable<float>& weights, bool add, bool* ok) {
  const bool with_grad = weights.data != nullptr;
  if (with_grad) {
    auto clear_all = [&](int64_t begin, int64_t end) {
      clear(tables.across, begin, end);
      clear(tables.along, begin, end);
      clear(tables.ends, begin, end);
    };
    *ok &= parallel_by_cost(weights.stride, weights.stride / 2, clear_all);
  }
  return with_criterion(options.criterion, options.beta, [&](auto criterion) {
    double sum = 2.0 * (with_grad ? sum_triplets<true>(criterion, tables, rows, ok)
                                  : sum_triplets<false>(criterion, tables, rows, ok));
    if (options.reduction != PairReduction::kMeanDistinct) {
      sum += sum_returns(criterion, tables, rows);
    }
    const double factor = scale * criterion.scale();
    if (with_grad) {
      // Both orders of the ends, S moves x_i by 2 (x_i - x_j), and weights pull towards x_j.
      const float weight = grid_factor(-4.0 * factor, unit, options.eps);
      const int64_t panels = weights.stride / kLanes;
      auto weigh = [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
          weigh_tile(tables, weight, tile / panels * kLanes, tile % panels * kLanes, weights, add);
        }
      };
      *ok &= parallel_by_cost(panels * panels, 400, weigh);
    }
    return factor * sum;
  });
}

}  // namespace fastkd::cpu
