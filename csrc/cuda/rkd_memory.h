// SPDX-License-Identifier: Apache-2.0
// What the kernels of rkd_loss tell each other, in the scratch that the caller brings.
#pragma once

#include "core/workspace.h"
#include "cuda/pair_table.h"
#include "cuda/triplets.h"

namespace fastkd::cuda {

// What is learned on the way; only the device reads it.
struct RkdSummary {
  SquareForm form;          // of the angles
  double inverse_means[2];  // 1 / mean of the positive distances
  double inverse_pairs;     // 1 / how many of the student's are positive, of all i != j
  double mean_slope;        // of the criterion's slope * distance / mean of the distances
  double poison;            // NaN where a square is not finite, else 0: added to all results
};

// The host's numbers that the sums are multiplied by; 0: the part is not wanted.
struct RkdFactors {
  double distance, angle;   // weight * criterion.scale() / denominator
  double angle_of_nothing;  // what a triplet with i == k adds where one side has no direction
};

// Arrays of a part that is not wanted, or of a gradient that is not, are nullptr.
struct RkdMemory {
  int64_t rows;
  RkdDistance distance;
  RkdSummary* summary;
  SquareCensus* census;     // [2, census_tiles]
  double* distance_values;  // [rows]: sums over the pairs of a row
  double* distance_slopes;  // [rows]: of slope * distance / mean of the distances
  SplitTables split;
  double* mismatches;  // [rows]: how often one side has a direction and the other has none
  AngleSums angles;
  float* pulls;  // [stride, stride]: first the slopes at the distances, then for the gradient,
                 // unless wide: then over the teacher's squares, which nobody reads any more

  RkdMemory(Workspace& workspace, const PairArgs& args, const RkdOptions& options);
};

inline RkdMemory::RkdMemory(Workspace& workspace, const PairArgs& args, const RkdOptions& options)
    : rows(args.rows), distance{options.squared, options.eps} {
  const bool distances = options.distance_weight != 0.0, angle = options.angle_weight != 0.0;
  const bool with_grad = args.with_grad;
  // Between numbers cosines are -1, 0 or 1: no gradient but rounding's.
  const bool moves_angles = angle && with_grad && args.student.features > 1;
  const int64_t stride = pair_stride(rows), elements = stride * stride;
  const auto singles = [&](bool wanted, int64_t count) {
    return wanted ? workspace.take<float>(count) : nullptr;
  };
  const auto doubles = [&](bool wanted, int64_t count) {
    return wanted ? workspace.take<double>(count) : nullptr;
  };
  summary = workspace.take<RkdSummary>(1);
  census = workspace.take<SquareCensus>(2 * census_tiles(rows));
  distance_values = doubles(distances, rows);
  distance_slopes = doubles(distances, rows);
  split = {&summary->form, singles(angle, kArmPlanes * elements), stride};
  mismatches = doubles(angle, rows);
  const TripletPlan ends = plan_ends(rows), vertices = plan_vertices(rows);
  angles.values = doubles(angle, ends.blocks());
  angles.ends = singles(moves_angles, ends.splits * elements);
  angles.across = singles(moves_angles, 2 * vertices.splits * elements);
  angles.along = moves_angles ? angles.across + vertices.splits * elements : nullptr;
  pulls = singles(with_grad, elements);
}

}  // namespace fastkd::cuda
