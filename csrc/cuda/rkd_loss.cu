// SPDX-License-Identifier: Apache-2.0
// rkd_loss -> pair_table (squared distances) -> rkd_sums (what they add up to)
//          -> rkd_pairs (distances) and triplets (angles) -> rkd_sums (loss)
//          -> rkd_pairs (pulls) -> pair_gradient
#include "cuda/pair_gradient.h"
#include "cuda/rkd_pairs.h"
#include "cuda/rkd_sums.h"

namespace fastkd {

namespace cuda {
namespace {

// T: of the squares; angles need doubles.
template <class T>
PairTables<T> take_squares(Workspace& workspace, int64_t rows) {
  const int64_t stride = pair_stride(rows);
  T* const student = workspace.take<T>(stride * stride);
  return {student, workspace.take<T>(stride * stride), stride};
}

template <class C>
RkdFactors factors_of(const C& criterion, const RkdOptions& options, int64_t rows) {
  const auto factor = [&](double weight, int order) {
    return weight * criterion.scale() * inverse_relations(options.reduction, rows, order);
  };
  // Of distinct indices i == k is none.
  const bool itself = options.reduction != PairReduction::kMeanDistinct;
  return {factor(options.distance_weight, 2), factor(options.angle_weight, 3),
          itself ? criterion.value(criterion.slope(1.0), 1.0) : 0.0};
}

template <class T>
Outcome run_rkd(const PairArgs& args, const RkdOptions& options) {
  Workspace workspace(args.workspace);
  const PairTables<T> squares = take_squares<T>(workspace, args.rows);
  const RkdMemory memory(workspace, args, options);
  Launcher launch(args.queue);
  launch_squares(launch, args, squares, memory.distance, memory.census);
  launch_summary(launch, memory, options.eps);
  with_criterion(options.criterion, options.beta, [&](const auto& criterion) {
    const RkdFactors factors = factors_of(criterion, options, args.rows);
    if (options.distance_weight != 0.0) launch_distances(launch, criterion, squares, memory);
    if constexpr (sizeof(T) == sizeof(double)) {
      const WideTables wide{squares, memory.split};
      launch_split(launch, args.rows, squares, memory.split, memory.mismatches);
      launch_ends(launch, criterion, args.rows, memory.split, memory.angles);
      launch_wide_ends(launch, criterion, args.rows, wide, memory.angles);
      if (memory.angles.across != nullptr) {
        launch_vertices(launch, criterion, args.rows, memory.split, memory.angles);
        launch_wide_vertices(launch, criterion, args.rows, wide, memory.angles);
      }
    }
    launch_rkd_sum(launch, memory, factors, args.loss);
    if (args.with_grad) {
      RkdFactors of_pulls = factors;
      if (memory.angles.across == nullptr) of_pulls.angle = 0.0;
      launch_pulls(launch, squares, memory, of_pulls);
      const bool* wide = nullptr;
      if constexpr (sizeof(T) == sizeof(double)) {
        wide = &memory.summary->form.wide;
        launch_wide_gradient(launch, args, {squares.teacher, nullptr}, true, wide);
      }
      launch_pair_gradient(launch, args, {memory.pulls, nullptr}, false, wide);
    }
  });
  return launch.outcome();
}

Outcome no_loss(const PairArgs& args) {
  Launcher launch(args.queue);
  launch_zeros(launch, args.loss, 1);
  if (args.with_grad) launch_zeros(launch, args.grad, args.rows * args.student.features);
  return launch.outcome();
}

}  // namespace
}  // namespace cuda

int64_t rkd_loss_workspace(const PairArgs& args, const RkdOptions& options) {
  Workspace workspace(nullptr);
  if (options.angle_weight != 0.0) {
    cuda::take_squares<double>(workspace, args.rows);
  } else {
    cuda::take_squares<float>(workspace, args.rows);
  }
  const cuda::RkdMemory memory(workspace, args, options);
  return workspace.bytes();
}

Outcome rkd_loss(const PairArgs& args, const RkdOptions& options) {
  if (options.distance_weight == 0.0 && options.angle_weight == 0.0) return cuda::no_loss(args);
  return options.angle_weight != 0.0 ? cuda::run_rkd<double>(args, options)
                                     : cuda::run_rkd<float>(args, options);
}

}  // namespace fastkd
