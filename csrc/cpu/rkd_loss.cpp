// SPDX-License-Identifier: Apache-2.0
// rkd_loss -> pair_table (squared distances) -> rkd_distance | triplets -> pair_gather (gradient)
#include <math.h>

#include "core/workspace.h"
#include "cpu/pair_gather.h"
#include "cpu/rkd_distance.h"
#include "cpu/triplets.h"
#include "kernels.h"

namespace fastkd {

namespace cpu {
namespace {

// Tables share memory where one is done before the other begins.
struct RkdWorkspace {
  Panels student, teacher;
  SquareRows squares[2];  // of the sides; angles
  PairTable<float> distances[2];
  double *across, *along, *ends;  // room for wide ones; ends lies over the distances
  PairTable<float> weights;
  double* rows;
  double* partials;

  RkdWorkspace() = default;
  RkdWorkspace(Workspace& workspace, const PairArgs& args, const RkdOptions& options) {
    const bool with_distances = options.distance_weight != 0.0;
    const bool angles = options.angle_weight != 0.0, with_grad = args.with_grad;
    const int64_t n = args.rows, width = whole_lanes(n), elements = width * width;
    const auto panels = [&](const Embeddings& x) {
      return Panels{workspace.take<float>(Panels::elements(n, x.features)), n, x.features};
    };
    const auto doubles = [&](bool wanted, int64_t count) {
      return wanted ? workspace.take<double>(count) : nullptr;
    };
    student = panels(args.student);
    teacher = panels(args.teacher);
    for (SquareRows& side : squares) {
      side = {angles ? workspace.take<float>(SquareRows::elements(n)) : nullptr, width};
    }
    across = doubles(angles && with_grad, elements);
    along = doubles(angles && with_grad, elements);
    ends = doubles(with_distances || (angles && with_grad), elements);
    float* const halves = reinterpret_cast<float*>(ends);
    distances[0] = {halves, width};
    distances[1] = {with_distances ? halves + elements : nullptr, width};
    weights = {with_grad ? workspace.take<float>(elements) : nullptr, width};
    rows = workspace.take<double>(2 * width);
    partials = doubles(angles, triplet_tasks(n));
  }

  // The angles' tables; weights: where the gradient's go.
  template <class Squares>
  AngleTables<Squares> angle_tables(
      const PairTable<typename AngleTables<Squares>::Sum>& of_gradient) const {
    using Sum = typename AngleTables<Squares>::Sum;
    const auto table = [&](double* memory) {
      return PairTable<Sum>{reinterpret_cast<Sum*>(memory), weights.stride};
    };
    return {Squares(squares[0]), Squares(squares[1]), table(across), table(along),
            table(ends),         of_gradient,         partials};
  }
};

// Squares of either type to distances; in place where both are floats.
template <class T>
bool to_distances(const RkdDistance& distance, const PairTable<T>& squares, int64_t rows,
                  const PairTable<float>& out) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < out.stride; j += kLanes) {
        Vec d = to_single(distance.distance(LanesOf<T>::V::load(squares.row(i) + j)));
        if (j + kLanes > rows) d = keep(FirstLanes{static_cast<int>(rows - j)}, d);
        d.store(out.row(i) + j);
      }
      out.row(i)[i] = 0.0f;
    }
  };
  return parallel_by_cost(rows, rows, body);
}

void fill(float* out, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) out[i] = value;
}

class Rkd {
 public:
  Rkd(const PairArgs& args, const RkdOptions& options)
      : args_(args),
        options_(options),
        distance_{options.squared, options.eps},
        nearest_(options.eps < 1.0 ? options.eps * options.eps : options.eps),
        distances_(options.distance_weight != 0.0),
        angles_(options.angle_weight != 0.0),
        // In one dimension every cosine is -1, 0 or 1, and nothing moves it.
        moves_angles_(angles_ && args.with_grad && args.student.features > 1) {
    Workspace workspace(args.workspace);
    memory_ = RkdWorkspace(workspace, args, options);
  }

  Outcome run() {
    ok_ =
        pack_panels(args_.student, memory_.student) && pack_panels(args_.teacher, memory_.teacher);
    bool plain = false;
    if (angles_) {
      fill_squares<float>();
      plain = allows_plain(ranges_[0]) && allows_plain(ranges_[1]);
      if (!plain) fill_squares<double>();
    } else {
      for (int side = 0; side < 2; ++side) fill_distances(side);
    }
    constexpr double not_a_number = static_cast<double>(NAN);
    const bool wide = angles_ && !plain && wants_wide(ranges_[0], ranges_[1]);
    double loss =
        ranges_[0].largest <= DBL_MAX && ranges_[1].largest <= DBL_MAX ? 0.0 : not_a_number;
    // Of very large or small numbers the weights leave float, but not in this unit.
    if (wide && moves_angles_) unit_ = root_of_two(ranges_[0].largest);
    if (distances_ && loss == 0.0) loss += distance_part();
    if (angles_ && loss <= DBL_MAX) {
      loss += plain  ? angle_part<PlainSquares>(memory_.weights)
              : wide ? angle_part<WideSquares>(memory_.squares[0].doubles())
                     : angle_part<SplitSquares>(memory_.weights);
    }
    *args_.loss = static_cast<float>(loss);
    if (args_.with_grad) gradient(loss, wide);
    if (!ok_) return {Status::kThreadPoolFailed};
    return {};
  }

 private:
  const Panels& panels(int side) const { return side == 0 ? memory_.student : memory_.teacher; }

  // For the angles, and the distances from them.
  template <class T>
  void fill_squares() {
    for (int side = 0; side < 2; ++side) {
      const SquareRows& out = memory_.squares[side];
      const PairTable<T> squares = squares_of<T>(out);
      ok_ &= squared_distances(panels(side), squares);
      ranges_[side] = square_range(squares, args_.rows, nearest_, memory_.rows, &ok_);
      if (distances_) ok_ &= to_distances(distance_, squares, args_.rows, memory_.distances[side]);
    }
  }

  void fill_distances(int side) {
    const PairTable<float>& out = memory_.distances[side];
    ok_ &= squared_distances(panels(side), out);
    ranges_[side] = square_range(out, args_.rows, nearest_, memory_.rows, &ok_);
    ok_ &= to_distances(distance_, out, args_.rows, out);
  }

  double distance_part() {
    const double scale = options_.distance_weight * relations(2);
    const DistanceTables tables{memory_.distances[0], memory_.distances[1], memory_.rows};
    return distance_loss(options_, args_.rows, scale, tables, memory_.weights, unit_, &ok_);
  }

  template <class Squares>
  double angle_part(const PairTable<typename AngleTables<Squares>::Sum>& weights) {
    SquareGrid grids[2];
    for (int side = 0; side < 2; ++side) {
      grids[side] = SquareGrid::covering(ranges_[side].largest, options_.eps);
      Squares::make(memory_.squares[side], grids[side], &ok_);
    }
    const OtherWeights others{{distances_ ? memory_.weights.data : nullptr, memory_.weights.stride},
                              unit_};
    return angle_loss(options_, args_.rows, options_.angle_weight * relations(3), grids[0],
                      memory_.angle_tables<Squares>(weights), moves_angles_, others, &ok_);
  }

  // A power of two near the root.
  static double root_of_two(double square) {
    int exponent = 0;
    if (square > 0.0 && square <= DBL_MAX) ::frexp(square, &exponent);
    return ::ldexp(1.0, exponent / 2);
  }

  void gradient(double loss, bool wide) {
    const int64_t elements = args_.rows * args_.student.features;
    if (!(loss <= DBL_MAX)) return fill(args_.grad, elements, NAN);
    if (!distances_ && !moves_angles_) return fill(args_.grad, elements, 0.0f);
    if (wide && moves_angles_) {
      ok_ &= gather_by<Gather::kDifferences, double>(memory_.squares[0].doubles(), nullptr);
    } else if (rows_suffice()) {
      sum_weights();
      const float* const own = reinterpret_cast<const float*>(memory_.rows);
      ok_ &= gather_by<Gather::kRows>(memory_.weights, own);
    } else {
      ok_ &= gather_by<Gather::kDifferences, float>(memory_.weights, nullptr);
    }
  }

  // Products with rows and not with differences take half the time, and lose as many digits as the
  // rows are longer than the nearest are apart.
  bool rows_suffice() {
    const double longest = largest_square(memory_.student, memory_.rows, &ok_);
    return ranges_[0].smallest >= longest / 64;
  }

  // What the row itself is then gathered with, to memory_.rows.
  void sum_weights() {
    float* const own = reinterpret_cast<float*>(memory_.rows);
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        DoubleVec sum(0.0);
        for (int64_t j = 0; j < memory_.weights.stride; j += kLanes) {
          sum = sum + DoubleVec::load(memory_.weights.row(i) + j);
        }
        own[i] = -static_cast<float>(sum_lanes(sum));
      }
    };
    ok_ &= parallel_by_cost(args_.rows, args_.rows, body);
  }

  template <Gather kGather, class T>
  bool gather_by(const PairTable<T>& weights, const T* own) {
    return gather<kGather>(memory_.student, args_.student.data, weights, own, args_.grad);
  }

  double relations(int order) const {
    return inverse_relations(options_.reduction, args_.rows, order);
  }

  PairArgs args_;
  RkdOptions options_;
  RkdDistance distance_;
  double nearest_;  // squares up to this move nothing, neither by distances nor by angles
  bool distances_, angles_, moves_angles_;
  RkdWorkspace memory_;
  SquareRange ranges_[2];
  double unit_ = 1.0;  // of distances, where their weights are made: a power of two
  bool ok_ = true;
};

}  // namespace
}  // namespace cpu

int64_t rkd_loss_workspace(const PairArgs& args, const RkdOptions& options) {
  Workspace workspace(nullptr);
  const cpu::RkdWorkspace memory(workspace, args, options);
  return workspace.bytes();
}

Outcome rkd_loss(const PairArgs& args, const RkdOptions& options) {
  if (options.distance_weight == 0.0 && options.angle_weight == 0.0) {
    *args.loss = 0.0f;
    if (args.with_grad) cpu::fill(args.grad, args.rows * args.student.features, 0.0f);
    return {};
  }
  return cpu::Rkd(args, options).run();
}

}  // namespace fastkd
