// SPDX-License-Identifier: Apache-2.0
// Angles of all triplets of a batch: their loss, and its slopes by the squared distances, with
// losses/rkd_angle_loss.h. The triplets are gone through twice, for without atomics a sum needs
// one owner:
//
//   angle_ends      owns the ends (i, k), i < k, sums over the vertices j: loss, dloss/dS_ik
//   angle_vertices  owns the arm from j to i, sums over the other ends k: dloss/dS_ij
//
// Both have tiles of 32 x 32 sums, 2 x 4 a thread, and bring what they sum over 8 rows of the
// tables at a time through shared memory. A small batch has too few tiles for the chip, so the
// range of a sum is then shared by several blocks ("splits"), and who reads adds them up.
#pragma once

#include "cuda/pair_table.h"
#include "losses/rkd_angle_loss.h"

namespace fastkd::cuda {

enum Plane {
  kStudentHigh,
  kStudentLow,
  kTeacherHigh,
  kTeacherLow,
  kSquarePlanes,  // what the distance between the ends is
  kStudentInverse = kSquarePlanes,
  kTeacherInverse,
  kArmPlanes,  // what an arm is
};

// The split squares of both sides. Beyond the rows there are zeros: arms without direction.
struct SplitTables {
  float* planes;  // [kArmPlanes, stride, stride]
  int64_t stride;

  FASTKD_HOST_DEVICE float* row(int plane, int64_t row) const {
    return planes + (plane * stride + row) * stride;
  }
};

constexpr int kStageRows = 8;

// How a kernel shares the work; depends on the number of rows alone.
struct TripletPlan {
  int64_t tiles;
  int64_t splits;
  int64_t split_rows;  // a multiple of kStageRows
  int64_t end_row;     // of the last split, likewise

  int64_t blocks() const { return tiles * splits; }
};

TripletPlan plan_ends(int64_t rows);
TripletPlan plan_vertices(int64_t rows);

struct AngleSums {
  float* ends;            // [splits of plan_ends, stride, stride]: across, where row < column
  double* values;         // [splits * tiles of plan_ends]: over i < k
  float *across, *along;  // [splits of plan_vertices, stride, stride]: at (vertex, neighbour)
};

// grids: [2] on the device, the student's first. mismatches: [rows], how often one side has a
// direction and the other has none.
void launch_split(Launcher& launch, int64_t rows, const PairTables<double>& squares,
                  const SquareGrid* grids, const SplitTables& tables, double* mismatches);

template <class C>
void launch_ends(Launcher& launch, const C& criterion, int64_t rows, const SplitTables& tables,
                 const AngleSums& sums);

template <class C>
void launch_vertices(Launcher& launch, const C& criterion, int64_t rows, const SplitTables& tables,
                     const AngleSums& sums);

}  // namespace fastkd::cuda
