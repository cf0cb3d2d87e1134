// SPDX-License-Identifier: Apache-2.0
// For a vertex j the angle between i and k is that between k and i, so only i < k is visited: lanes
// go along k, an inner loop has one vertex and two neighbours i.
//
// A triplet adds to the rows j and i of the gradient's tables. Vertices are cut into blocks, and
// the neighbours i into as many sets; in round r task b has block b and set b + r, so no two tasks
// of a round write the same row, and what a row sums, and in which order, depends on N alone.
#include "cpu/triplets.h"

#include <utility>

namespace fastkd::cpu {

namespace {

constexpr int kNeighbours = 2;       // i of an inner loop
constexpr int64_t kTile = 512;       // k of an inner loop: tables of a block of vertices stay in L2
constexpr int64_t kMinBlock = 32;    // vertices
constexpr int64_t kMaxBlocks = 128;  // threads that can work at once

int64_t block_count(int64_t rows) {
  if (rows < 2 * kMinBlock) return 1;
  const int64_t blocks = rows / kMinBlock;
  return blocks < 1 ? 1 : blocks > kMaxBlocks ? kMaxBlocks : blocks;
}

constexpr float kZerosThenOnes[2 * kLanes] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                              1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// Ones in the lanes above `lane`.
template <class V>
V lanes_above(int lane) {
  return V::load(kZerosThenOnes + kLanes - 1 - lane);
}

// The rows of two neighbours i: from them to all k.
template <class Squares>
struct Neighbours {
  using Row = typename Squares::Row;
  using Sum = Lane<typename Squares::V>;
  Row student[kNeighbours], teacher[kNeighbours];
  Sum* ends[kNeighbours];

  Neighbours(const AngleTables<Squares>& tables, int64_t first) {
    for (int r = 0; r < kNeighbours; ++r) {
      student[r] = tables.student.row(first + r);
      teacher[r] = tables.teacher.row(first + r);
      ends[r] = tables.ends.data == nullptr ? nullptr : tables.ends.row(first + r);
    }
  }
};

// The rows of a vertex j. They are stepped from vertex to vertex, for the compiler would multiply
// strides in vectors, which takes longer than a short row.
template <class Squares>
struct Vertex {
  using Row = typename Squares::Row;
  using Sum = Lane<typename Squares::V>;
  Row student, teacher;
  Sum *across, *along;

  Vertex(const AngleTables<Squares>& tables, int64_t j)
      : student(tables.student.row(j)),
        teacher(tables.teacher.row(j)),
        across(tables.across.data == nullptr ? nullptr : tables.across.row(j)),
        along(tables.along.data == nullptr ? nullptr : tables.along.row(j)) {}

  void step(const AngleTables<Squares>& tables) {
    student = tables.student.after(student);
    teacher = tables.teacher.after(teacher);
    if (across == nullptr) return;
    across += tables.across.stride;
    along += tables.along.stride;
  }
};

// One vertex and two neighbours i, against sixteen neighbours k at a time.
template <class C, class Squares, bool kWithGrad>
class InnerLoop {
 public:
  using V = typename Squares::V;
  using Sum = Lane<V>;

  InnerLoop(const C& criterion, const Neighbours<Squares>& neighbours,
            const Vertex<Squares>& vertex, int64_t first)
      : criterion_(criterion), i_(neighbours), vertex_(vertex), values_(static_cast<Sum>(0)) {
    for (int r = 0; r < kNeighbours; ++r) {
      student_[r] = vertex.student.half_arm(first + r);
      teacher_[r] = vertex.teacher.half_arm(first + r);
      across_[r] = along_[r] = V(static_cast<Sum>(0));
    }
  }

  // `masks` of the neighbours: 0 where a triplet is visited from elsewhere.
  template <bool kMasked>
  void visit(int64_t k, const V* masks) {
    const auto student_arms = vertex_.student.arms(k), teacher_arms = vertex_.teacher.arms(k);
    V across_k, along_k;
    if constexpr (kWithGrad) {
      across_k = V::load(vertex_.across + k);
      along_k = V::load(vertex_.along + k);
    }
    for (int r = 0; r < kNeighbours; ++r) {
      auto s = student_arms, t = teacher_arms;
      if constexpr (kMasked) {  // without a direction a triplet adds nothing
        s.inverse = s.inverse * masks[r];
        t.inverse = t.inverse * masks[r];
      }
      const Cosine<V> of_student = i_.student[r].cosines(student_[r], s, k);
      const Cosine<V> of_teacher = i_.teacher[r].cosines(teacher_[r], t, k);
      // As add_angle_term, to sums of i and of k at once: in as few and as many additions as
      // multiplications, for units that only add are as many as those that multiply too.
      const V difference = of_student.cosine - of_teacher.cosine;
      const V c = criterion_.slope(difference);
      values_ = criterion_.add_value(values_, c, difference);
      if constexpr (kWithGrad) {
        const V half_inverse = of_student.half_inverse;
        across_[r] = fma(c, half_inverse, across_[r]);
        along_[r] = fma(c, of_student.cosine, along_[r]);
        across_k = fma(c, half_inverse, across_k);
        along_k = fma(c, of_student.cosine, along_k);
        fma(c, half_inverse, V::load(i_.ends[r] + k)).store(i_.ends[r] + k);
      }
    }
    if constexpr (kWithGrad) {
      across_k.store(vertex_.across + k);
      along_k.store(vertex_.along + k);
    }
  }

  // Gives the vertex what it has of the neighbours `first` and after.
  void finish(int64_t first) const {
    if constexpr (!kWithGrad) return;
    for (int r = 0; r < kNeighbours; ++r) {
      vertex_.across[first + r] += sum_lanes(across_[r]);
      vertex_.along[first + r] += sum_lanes(along_[r]);
    }
  }

  V values() const { return values_; }

 private:
  using HalfArm = decltype(std::declval<typename Squares::Row>().half_arm(0));

  C criterion_;
  Neighbours<Squares> i_;
  Vertex<Squares> vertex_;
  HalfArm student_[kNeighbours], teacher_[kNeighbours];  // from the vertex to i
  V across_[kNeighbours], along_[kNeighbours];
  V values_;
};

template <class C, class Squares, bool kWithGrad>
class Triplets {
 public:
  using V = typename Squares::V;

  Triplets(const C& criterion, const AngleTables<Squares>& tables, int64_t rows)
      : criterion_(criterion), tables_(tables), rows_(rows), blocks_(block_count(rows)) {}

  double task(int64_t round, int64_t block) const {
    const int64_t set = (block + round) % blocks_;
    const int64_t first = rows_ * block / blocks_, last = rows_ * (block + 1) / blocks_;
    double value = 0.0;
    for (int64_t begin = 0; begin < rows_; begin += kTile) {
      const int64_t end = begin + kTile < rows_ ? begin + kTile : rows_;
      // Sets are interleaved, so that all have long and short rows.
      for (int64_t i = set * kNeighbours; i < end; i += blocks_ * kNeighbours) {
        const Neighbours<Squares> neighbours(tables_, i);
        Vertex<Squares> vertex(tables_, first);
        V values(static_cast<Lane<V>>(0));
        for (int64_t j = first; j < last; ++j, vertex.step(tables_)) {
          values = values + triplets(neighbours, vertex, i, begin, end);
        }
        value += static_cast<double>(sum_lanes(values));
      }
    }
    return value;
  }

 private:
  // Neighbours i and i + 1, all k > i of [begin, end).
  V triplets(const Neighbours<Squares>& neighbours, const Vertex<Squares>& vertex, int64_t i,
             int64_t begin, int64_t end) const {
    InnerLoop<C, Squares, kWithGrad> loop(criterion_, neighbours, vertex, i);
    int64_t k = i / kLanes * kLanes;
    if (k >= begin) {
      V masks[kNeighbours];
      for (int r = 0; r < kNeighbours; ++r) masks[r] = lanes_above<V>(static_cast<int>(i - k) + r);
      loop.template visit<true>(k, masks);
      k += kLanes;
    } else {
      k = begin;
    }
    for (; k < end; k += kLanes) loop.template visit<false>(k, nullptr);
    loop.finish(i);
    return loop.values();
  }

  C criterion_;
  AngleTables<Squares> tables_;
  int64_t rows_, blocks_;
};

// All triplets with i < k.
template <bool kWithGrad, class C, class Squares>
double sum_triplets(const C& criterion, const AngleTables<Squares>& tables, int64_t rows,
                    bool* ok) {
  const Triplets<C, Squares, kWithGrad> triplets(criterion, tables, rows);
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
template <class C, class Squares>
double sum_returns(const C& criterion, const AngleTables<Squares>& tables, int64_t rows) {
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
template <class Squares>
void weigh_tile(const AngleTables<Squares>& tables, double factor, int64_t i, int64_t j,
                const OtherWeights& others) {
  using V = typename Squares::V;
  using Sum = Lane<V>;
  const auto slopes = [&](int64_t row, int64_t column) {
    const V inverse = V::load(tables.student.inverse.row(row) + column);
    return arm_slope(V::load(tables.across.row(row) + column),
                     V::load(tables.along.row(row) + column), inverse) -
           V::load(tables.ends.row(row) + column);
  };
  const V of_others(static_cast<Sum>(1.0 / (others.unit * others.unit)));
  Sum mirrored[kLanes][kLanes];
  for (int r = 0; r < kLanes; ++r) slopes(j + r, i).store(mirrored[r]);
  for (int r = 0; r < kLanes; ++r) {
    Sum column[kLanes];
    for (int c = 0; c < kLanes; ++c) column[c] = mirrored[c][r];
    V weight = V(static_cast<Sum>(factor)) * (slopes(i + r, j) + V::load(column));
    if (others.table.data != nullptr) {
      weight = fma(of_others, V::load(others.table.row(i + r) + j), weight);
    }
    weight.store(tables.weights.row(i + r) + j);
  }
}

template <class Sum>
void clear(const PairTable<Sum>& table, int64_t begin, int64_t end) {
  memset(table.row(begin), 0, static_cast<size_t>((end - begin) * table.stride) * sizeof(Sum));
}

}  // namespace

int64_t triplet_tasks(int64_t rows) { return block_count(rows) * block_count(rows); }

template <class Squares>
double angle_loss(const RkdOptions& options, int64_t rows, double scale, const SquareGrid& grid,
                  const AngleTables<Squares>& tables, bool with_grad, const OtherWeights& others,
                  bool* ok) {
  const int64_t width = whole_lanes(rows);
  if (with_grad) {
    auto clear_all = [&](int64_t begin, int64_t end) {
      clear(tables.across, begin, end);
      clear(tables.along, begin, end);
      clear(tables.ends, begin, end);
    };
    *ok &= parallel_by_cost(width, width / 2, clear_all);
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
      const double weight = grid.of_slopes(-4.0 * factor);
      const int64_t panels = width / kLanes;
      auto weigh = [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
          weigh_tile(tables, weight, tile / panels * kLanes, tile % panels * kLanes, others);
        }
      };
      *ok &= parallel_by_cost(panels * panels, 400, weigh);
    }
    return factor * sum;
  });
}

template double angle_loss(const RkdOptions&, int64_t, double, const SquareGrid&,
                           const AngleTables<PlainSquares>&, bool, const OtherWeights&, bool*);
template double angle_loss(const RkdOptions&, int64_t, double, const SquareGrid&,
                           const AngleTables<SplitSquares>&, bool, const OtherWeights&, bool*);
template double angle_loss(const RkdOptions&, int64_t, double, const SquareGrid&,
                           const AngleTables<WideSquares>&, bool, const OtherWeights&, bool*);

}  // namespace fastkd::cpu
