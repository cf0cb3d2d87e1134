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
  PairTable<double> squares;       // of one side at a time; angles
  PairTable<float> single[2];      // squares of the sides, without angles; then distances
  SplitTable split[2];             // of student and teacher
  PairTable<float> across, along;  // in the memory of `squares`
  PairTable<float> ends, weights;
  double* rows;
  double* partials;

  RkdWorkspace(Arena& arena, const PairArgs& args, const RkdOptions& options) {
    const bool distances = options.distance_weight != 0.0, angles = options.angle_weight != 0.0;
    const int64_t n = args.rows, stride = whole_lanes(n), elements = stride * stride;
    const auto table = [&](bool wanted) {
      return PairTable<float>{wanted ? arena.take<float>(elements) : nullptr, stride};
    };
    const auto panels = [&](const Embeddings& x) {
      const int64_t size = Panels{nullptr, n, x.features}.elements(n, x.features);
      return Panels{arena.take<float>(size), n, x.features};
    };
    student = panels(args.student);
    teacher = panels(args.teacher);
    squares = {angles ? arena.take<double>(elements) : nullptr, stride};
    float* const halves = reinterpret_cast<float*>(squares.data);
    across = {halves, stride};
    along = {halves == nullptr ? nullptr : halves + elements, stride};
    for (int side = 0; side < 2; ++side) {
      single[side] = table(distances);
      split[side] = {table(angles), table(angles), table(angles)};
    }
    ends = distances ? single[0] : table(angles && args.grad != nullptr);
    weights = table(args.grad != nullptr);
    rows = arena.take<double>(2 * stride);
    partials = arena.take<double>(angles ? triplet_tasks(n) : 0);
  }
};

// Squares of either type to distances, in place where they are floats.
template <class T>
bool to_distances(const RkdDistance& distance, const PairTable<T>& squares, int64_t rows,
                  const PairTable<float>& out) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < squares.stride; j += kLanes) {
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

Outcome run_rkd(const PairArgs& args, const RkdOptions& options) {
  Arena arena(args.workspace);
  const RkdWorkspace memory(arena, args, options);
  const bool distances = options.distance_weight != 0.0, angles = options.angle_weight != 0.0;
  const int64_t n = args.rows;
  const Embeddings* const sides[2] = {&args.student, &args.teacher};
  const RkdDistance distance{options.squared, options.eps};

  bool ok = true;
  double unit[2] = {1.0, 1.0};
  for (int side = 0; side < 2; ++side) {
    const Panels& panels = side == 0 ? memory.student : memory.teacher;
    ok &= pack_panels(*sides[side], panels);
    const PairTable<float>& single = memory.single[side];
    if (angles) {
      ok &= squared_distances(panels, memory.squares);
      if (distances) ok &= to_distances(distance, memory.squares, n, single);
      unit[side] =
          split_squares(memory.squares, n, options.eps, memory.split[side], memory.rows, &ok);
    } else if (distances) {
      ok &= squared_distances(panels, single) && to_distances(distance, single, n, single);
    }
  }

  // In one dimension every cosine is -1, 0 or 1, and nothing moves it.
  const bool moves_angles = angles && args.grad != nullptr && args.student.features > 1;
  double loss = unit[0] * unit[1] > 0.0 ? 0.0 : static_cast<double>(NAN);
  if (distances && loss == 0.0) {
    const double scale = options.distance_weight * inverse_relations(options.reduction, n, 2);
    const DistanceTables tables{memory.single[0], memory.single[1], memory.rows};
    loss += distance_loss(options, n, scale, tables, memory.weights, &ok);
  }
  if (angles && loss <= DBL_MAX) {
    const double scale = options.angle_weight * inverse_relations(options.reduction, n, 3);
    const AngleTables tables{memory.split[0], memory.split[1], memory.across,
                             memory.along,    memory.ends,     memory.partials};
    const PairTable<float> weights{moves_angles ? memory.weights.data : nullptr,
                                   memory.weights.stride};
    loss += angle_loss(options, n, scale, unit[0], tables, weights, distances, &ok);
  }
  *args.loss = static_cast<float>(loss);
  if (args.grad != nullptr) {
    const int64_t elements = n * args.student.features;
    if (!(loss <= DBL_MAX)) {
      fill(args.grad, elements, NAN);
    } else if (!distances && !moves_angles) {
      fill(args.grad, elements, 0.0f);
    } else {
      ok &= gather<Gather::kDifferences>(memory.student, args.student.data, memory.weights, nullptr,
                                         args.grad);
    }
  }
  if (!ok) return {Status::kThreadPoolFailed};
  return {};
}

}  // namespace
}  // namespace cpu

int64_t rkd_loss_workspace(const PairArgs& args, const RkdOptions& options) {
  cpu::Arena arena(nullptr);
  const cpu::RkdWorkspace memory(arena, args, options);
  return arena.bytes();
}

Outcome rkd_loss(const PairArgs& args, const RkdOptions& options) {
  return cpu::run_rkd(args, options);
}

}  // namespace fastkd
