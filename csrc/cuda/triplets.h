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
//
// Batches that want it wide (losses/rkd_angle_loss.h) are the turn of wide_ends and wide_vertices
// (wide_triplets.cu): the same in doubles and without splits. Only the device knows whose turn it
// is, so all four are launched, and the blocks of two end at once.
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

// How the squares of a batch are held, as the device found out.
struct SquareForm {
  SquareGrid grids[2];  // of the student and the teacher
  bool wide;            // as doubles; else split
};

// The split squares of both sides. Beyond the rows there are zeros: arms without direction. Where
// squares are wide only the inverses are written.
struct SplitTables {
  const SquareForm* form;  // on the device
  float* planes;           // [kArmPlanes, stride, stride]
  int64_t stride;

  FASTKD_HOST_DEVICE float* row(int plane, int64_t row) const {
    return planes + (plane * stride + row) * stride;
  }
};

// Wide squares: in their own units, zeros beyond the rows; `split` has the inverses.
struct WideTables {
  PairTables<double> squares;
  SplitTables split;
};

constexpr int kStageRows = 8;

// How a kernel shares the work; depends on the number of rows alone.
struct TripletPlan {
  int64_t tiles;
  int64_t splits;
  int64_t split_rows;  // a multiple of kStageRows
  int64_t end_row;     // of the last split, likewise

  FASTKD_HOST_DEVICE int64_t blocks() const { return tiles * splits; }
};

TripletPlan plan_ends(int64_t rows);
TripletPlan plan_vertices(int64_t rows);

struct AngleSums {
  float* ends;            // [splits of plan_ends, stride, stride]: across, where row < column
  double* values;         // [splits * tiles of plan_ends]: over i < k
  float *across, *along;  // [splits of plan_vertices, stride, stride]: at (vertex, neighbour)
};

// The same of wide squares, in memory that is free then: across and along in that of the split
// squares, ends in that of the narrow across and along, which are one array.
struct WideSums {
  double* ends;            // [stride, stride]
  double* values;          // [tiles of plan_ends]
  double *across, *along;  // [stride, stride]

  static FASTKD_HOST_DEVICE WideSums in(const SplitTables& tables, const AngleSums& sums) {
    double* const planes = reinterpret_cast<double*>(tables.planes);
    return {reinterpret_cast<double*>(sums.across), sums.values, planes,
            planes + tables.stride * tables.stride};
  }
};

// Splits the squares, or makes them wide: these stay in `squares`, zeros beyond the rows.
// mismatches: [rows], how often one side has a direction and the other has none.
void launch_split(Launcher& launch, int64_t rows, const PairTables<double>& squares,
                  const SplitTables& tables, double* mismatches);

template <class C>
void launch_ends(Launcher& launch, const C& criterion, int64_t rows, const SplitTables& tables,
                 const AngleSums& sums);

template <class C>
void launch_vertices(Launcher& launch, const C& criterion, int64_t rows, const SplitTables& tables,
                     const AngleSums& sums);

template <class C>
void launch_wide_ends(Launcher& launch, const C& criterion, int64_t rows, const WideTables& tables,
                      const AngleSums& sums);

template <class C>
void launch_wide_vertices(Launcher& launch, const C& criterion, int64_t rows,
                          const WideTables& tables, const AngleSums& sums);

}  // namespace fastkd::cuda
