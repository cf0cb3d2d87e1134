// SPDX-License-Identifier: Apache-2.0
// rkd_loss -> pair_table (squared distances) -> rkd_distance | triplets -> pair_table (gradient)
#include <math.h>

#include "cpu/arena.h"
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
  RkdWorkspace(Arena& arena, const PairArgs& args, const RkdOptions& options) {
    const bool with_distances = options.distance_weight != 0.0;
    const bool angles = options.angle_weight != 0.0, with_grad = args.grad != nullptr;
    const int64_t n = args.rows, width = whole_lanes(n), elements = width * width;
    const auto panels = [&](const Embeddings& x) {
      return Panels{arena.take<float>(Panels::elements(n, x.features)), n, x.features};
    };
    const auto doubles = [&](bool wanted, int64_t count) {
      return wanted ? arena.take<double>(count) : nullptr;
    };
    student = panels(args.student);
    teacher = panels(args.teacher);
    for (SquareRows& side : squares) {
      side = {angles ? arena.take<float>(SquareRows::elements(n)) : nullptr, width};
    }
    across = doubles(angles && with_grad, elements);
    along = doubles(angles && with_grad, elements);
    ends = doubles(with_distances || (angles && with_grad), elements);
    float* const halves = reinterpret_cast<float*>(ends);
    distances[0] = {halves, width};
    distances[1] = {halves + elements, width};
    weights = {with_grad ? arena.take<float>(elements) : nullptr, width};
    rows = arena.take<double>(2 * width);
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

// Squares of either type to distances, in place where they are floats.
template <class T>
bool to_distances(const RkdDistance& distance, const PairTable<T>& squares, int64_t rows,
                  const PairTable<float>& out) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < out.stride; j += kLanes) {
        Vec d = distance.distance(to_single(DoubleVec::load(squares.row(i) + j)));
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
        distances_(options.distance_weight != 0.0),
        angles_(options.angle_weight != 0.0),
        // In one dimension every cosine is -1, 0 or 1, and nothing moves it.
        moves_angles_(angles_ && args.grad != nullptr && args.student.features > 1) {
    Arena arena(args.workspace);
    memory_ = RkdWorkspace(arena, args, options);
  }

  Outcome run() {
    SquareRange ranges[2];
    fill_side(0, args_.student, memory_.student, &ranges[0]);
    fill_side(1, args_.teacher, memory_.teacher, &ranges[1]);
    double loss = ranges[0].largest <= DBL_MAX && ranges[1].largest <= DBL_MAX ? 0.0 : NAN;
    bool wide = false;
    if (distances_ && loss == 0.0) loss += distance_part();
    if (angles_ && loss <= DBL_MAX) {
      wide = wants_wide(ranges[0], ranges[1]);
      loss += wide ? angle_part<WideSquares>(ranges, memory_.squares[0].doubles())
                   : angle_part<SplitSquares>(ranges, memory_.weights);
    }
    *args_.loss = static_cast<float>(loss);
    if (args_.grad != nullptr) gradient(loss, wide);
    if (!ok_) return {Status::kThreadPoolFailed};
    return {};
  }

 private:
  void fill_side(int side, const Embeddings& x, const Panels& panels, SquareRange* range) {
    const PairTable<float>& distances = memory_.distances[side];
    ok_ &= pack_panels(x, panels);
    if (!angles_) {
      ok_ &= squared_distances(panels, distances) &&
             to_distances(distance_, distances, args_.rows, distances);
      return;
    }
    const SquareRows& squares = memory_.squares[side];
    ok_ &= squared_distances(panels, squares.doubles());
    if (distances_) ok_ &= to_distances(distance_, squares.doubles(), args_.rows, distances);
    *range = square_range(squares, args_.rows, options_.eps, memory_.rows, &ok_);
  }

  double distance_part() {
    const double scale = options_.distance_weight * relations(2);
    const DistanceTables tables{memory_.distances[0], memory_.distances[1], memory_.rows};
    return distance_loss(options_, args_.rows, scale, tables, memory_.weights, &ok_);
  }

  template <class Squares>
  double angle_part(const SquareRange* ranges,
                    const PairTable<typename AngleTables<Squares>::Sum>& weights) {
    SquareGrid grids[2];
    for (int side = 0; side < 2; ++side) {
      grids[side] = SquareGrid::covering(ranges[side].largest, options_.eps);
      Squares::make(memory_.squares[side], grids[side], &ok_);
    }
    const PairTable<float> others{distances_ ? memory_.weights.data : nullptr,
                                  memory_.weights.stride};
    return angle_loss(options_, args_.rows, options_.angle_weight * relations(3), grids[0],
                      memory_.angle_tables<Squares>(weights), moves_angles_, others, &ok_);
  }

  void gradient(double loss, bool wide) {
    const int64_t elements = args_.rows * args_.student.features;
    if (!(loss <= DBL_MAX)) return fill(args_.grad, elements, NAN);
    if (!distances_ && !moves_angles_) return fill(args_.grad, elements, 0.0f);
    ok_ &= wide && moves_angles_ ? gather_with(memory_.squares[0].doubles())
                                 : gather_with(memory_.weights);
  }

  template <class T>
  bool gather_with(const PairTable<T>& weights) {
    const T* const own = nullptr;
    return gather<Gather::kDifferences>(memory_.student, args_.student.data, weights, own,
                                        args_.grad);
  }

  double relations(int order) const {
    return inverse_relations(options_.reduction, args_.rows, order);
  }

  PairArgs args_;
  RkdOptions options_;
  RkdDistance distance_;
  bool distances_, angles_, moves_angles_;
  RkdWorkspace memory_;
  bool ok_ = true;
};

}  // namespace
}  // namespace cpu

int64_t rkd_loss_workspace(const PairArgs& args, const RkdOptions& options) {
  cpu::Arena arena(nullptr);
  const cpu::RkdWorkspace memory(arena, args, options);
  return arena.bytes();
}

Outcome rkd_loss(const PairArgs& args, const RkdOptions& options) {
  return cpu::Rkd(args, options).run();
}

}  // namespace fastkd
