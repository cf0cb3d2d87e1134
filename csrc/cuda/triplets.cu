// SPDX-License-Identifier: Apache-2.0
#include "cuda/triplets.h"

namespace fastkd::cuda {

namespace {

constexpr int kTripletBlocks = 3;  // at once on a multiprocessor: four would spill registers

constexpr int kStageFloats = kStageRows * kTileSide;

// Brings rows [row, row + kStageRows) of a tile's columns of the first kPlanes planes to
// stage[kPlanes, kStageRows, kTileSide]; the inverses times `factor`.
template <int kPlanes>
__device__ __forceinline__ void bring(const SplitTables& tables, int64_t row, int64_t column,
                                      float factor, float* stage) {
  constexpr int kRuns = kStageFloats / 4;  // of a plane
  static_assert(kPlanes * kRuns % kPairThreads == 0 && kSquarePlanes * kRuns % kPairThreads == 0);
#pragma unroll
  for (int l = 0; l < kPlanes * kRuns / kPairThreads; ++l) {
    const int index = l * kPairThreads + thread_index();
    const int plane = index / kRuns, in_plane = index % kRuns;
    const int stage_row = in_plane / (kTileSide / 4), run = in_plane % (kTileSide / 4);
    auto four = load_run<4>(tables.row(plane, row + stage_row) + column + 4 * run);
    if (l * kPairThreads >= kSquarePlanes * kRuns) {
#pragma unroll
      for (float& inverse : four.at) inverse *= factor;
    }
    store_run(stage + 4 * index, four);
  }
}

// kCount neighbours of a row of every plane, from shared or global memory.
template <int kPlanes, int kCount>
struct Relations {
  Run<float, kCount> plane[kPlanes];

  __device__ __forceinline__ Relations(const float* data, int64_t plane_stride) {
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) plane[p] = load_run<kCount>(data + p * plane_stride);
  }

  __device__ __forceinline__ Arm<float> student_arm(int n) const {
    return {plane[kStudentHigh].at[n], plane[kStudentLow].at[n], plane[kStudentInverse].at[n]};
  }
  __device__ __forceinline__ Arm<float> teacher_arm(int n) const {
    return {plane[kTeacherHigh].at[n], plane[kTeacherLow].at[n], plane[kTeacherInverse].at[n]};
  }
};

template <int kCount>
using Arms = Relations<kArmPlanes, kCount>;
template <int kCount>
using Squares = Relations<kSquarePlanes, kCount>;

// The triplet of arms half[a] and arms[b], whose ends are as far apart as squares[e] says.
// `same`: the ends are one example, and nothing is added. (Its slopes would cancel, but for
// rounding, which is large between neighbours.)
template <class C, int kA, int kB, int kE>
__device__ __forceinline__ void add_triplet(const C& criterion, const Arms<kA>& half, int a,
                                            const Arms<kB>& arms, int b, const Squares<kE>& squares,
                                            int e, bool same, AngleTerm<float>& sum) {
  const Cosine<float> student =
      cosine_at_vertex(half.student_arm(a), arms.student_arm(b), squares.plane[kStudentHigh].at[e],
                       squares.plane[kStudentLow].at[e]);
  const float teacher =
      cosine_at_vertex(half.teacher_arm(a), arms.teacher_arm(b), squares.plane[kTeacherHigh].at[e],
                       squares.plane[kTeacherLow].at[e])
          .cosine;
  add_angle_term(criterion, student, same ? student.cosine : teacher, sum);
}

template <class C>
__global__ void __launch_bounds__(kPairThreads, kTripletBlocks)
    angle_ends(const C criterion, const SplitTables tables, const TripletPlan plan,
               const AngleSums sums) {
  if (tables.form->wide) return;  // the whole block
  Arena arena(shared_memory());
  float* const first_arms = arena.take<float>(kArmPlanes * kStageFloats);
  float* const second_arms = arena.take<float>(kArmPlanes * kStageFloats);
  double* const warps = arena.take<double>(kPairWarps);
  const TileIndex tile = upper_tile(block_index() % plan.tiles);
  const int64_t split = block_index() / plan.tiles;
  const int64_t begin = split * plan.split_rows;
  const int64_t end =
      begin + plan.split_rows < plan.end_row ? begin + plan.split_rows : plan.end_row;
  const int64_t i = tile.row * kTileSide + first_of_thread();
  const int64_t k = tile.column * kTileSide + second_of_thread();
  const int64_t plane_stride = tables.stride * tables.stride;
  const Squares<kSeconds> squares[kFirsts] = {{tables.row(0, i) + k, plane_stride},
                                              {tables.row(0, i + 1) + k, plane_stride}};
  float across[kFirsts][kSeconds] = {};
  LongSum<float> value;
  for (int64_t j = begin; j < end; j += kStageRows) {
    __syncthreads();  // all have read the stage before
    bring<kArmPlanes>(tables, j, tile.row * kTileSide, 0.5f, first_arms);
    bring<kArmPlanes>(tables, j, tile.column * kTileSide, 1.0f, second_arms);
    __syncthreads();
    AngleTerm<float> part[kFirsts][kSeconds] = {};
#pragma unroll 1
    for (int row = 0; row < kStageRows; ++row) {
      const Arms<kFirsts> half(first_arms + row * kTileSide + first_of_thread(), kStageFloats);
      const Arms<kSeconds> arms(second_arms + row * kTileSide + second_of_thread(), kStageFloats);
#pragma unroll
      for (int a = 0; a < kFirsts; ++a) {
#pragma unroll
        for (int b = 0; b < kSeconds; ++b) {
          add_triplet(criterion, half, a, arms, b, squares[a], b, false, part[a][b]);
        }
      }
    }
    float values = 0.0f;
#pragma unroll
    for (int a = 0; a < kFirsts; ++a) {
#pragma unroll
      for (int b = 0; b < kSeconds; ++b) {
        across[a][b] += part[a][b].across;
        if (i + a < k + b) values += part[a][b].value;
      }
    }
    value.fold(values);
  }
  if (sums.ends != nullptr) {
#pragma unroll
    for (int a = 0; a < kFirsts; ++a) {
      Run<float, kSeconds> run;
#pragma unroll
      for (int b = 0; b < kSeconds; ++b) run.at[b] = across[a][b];
      store_run(sums.ends + (split * tables.stride + i + a) * tables.stride + k, run);
    }
  }
  const double all = block_sum(static_cast<double>(value.total(0.0f)), warps);
  if (thread_index() == 0) sums.values[block_index()] = all;
}

struct ArmSum {
  float across, along;
};

// Adds a stage's ends to the sums of arms (vertex j, neighbour i). `ends`: the first of them,
// less the first neighbour of this thread; kMeet: some end is a neighbour of the tile.
template <bool kMeet, class C>
__device__ __forceinline__ void add_ends(const C& criterion, const Arms<kSeconds> (&half)[kFirsts],
                                         const float* arm_stage, const float* square_stage,
                                         int ends, ArmSum (&sum)[kFirsts][kSeconds]) {
  AngleTerm<float> part[kFirsts][kSeconds] = {};
#pragma unroll 1
  for (int row = 0; row < kStageRows; ++row) {
    const Arms<kFirsts> arms(arm_stage + row * kTileSide + first_of_thread(), kStageFloats);
    const Squares<kSeconds> squares(square_stage + row * kTileSide + second_of_thread(),
                                    kStageFloats);
#pragma unroll
    for (int a = 0; a < kFirsts; ++a) {
#pragma unroll
      for (int b = 0; b < kSeconds; ++b) {
        const bool same = kMeet && ends + row == b;
        add_triplet(criterion, half[a], b, arms, a, squares, b, same, part[a][b]);
      }
    }
  }
#pragma unroll
  for (int a = 0; a < kFirsts; ++a) {
#pragma unroll
    for (int b = 0; b < kSeconds; ++b) {
      sum[a][b].across += part[a][b].across;
      sum[a][b].along += part[a][b].along;
    }
  }
}

template <class C>
__global__ void __launch_bounds__(kPairThreads, kTripletBlocks)
    angle_vertices(const C criterion, const SplitTables tables, const TripletPlan plan,
                   const AngleSums sums) {
  if (tables.form->wide) return;  // the whole block
  Arena arena(shared_memory());
  float* const arm_stage = arena.take<float>(kArmPlanes * kStageFloats);
  float* const square_stage = arena.take<float>(kSquarePlanes * kStageFloats);
  const int64_t tiles = tables.stride / kTileSide;  // in a row
  const int64_t tile = block_index() % plan.tiles, split = block_index() / plan.tiles;
  const int64_t begin = split * plan.split_rows;
  const int64_t end =
      begin + plan.split_rows < plan.end_row ? begin + plan.split_rows : plan.end_row;
  const int64_t tile_vertex = tile / tiles * kTileSide, tile_neighbour = tile % tiles * kTileSide;
  const int64_t vertex = tile_vertex + first_of_thread();
  const int64_t neighbour = tile_neighbour + second_of_thread();
  const int64_t plane_stride = tables.stride * tables.stride;
  Arms<kSeconds> half[kFirsts] = {{tables.row(0, vertex) + neighbour, plane_stride},
                                  {tables.row(0, vertex + 1) + neighbour, plane_stride}};
#pragma unroll
  for (int a = 0; a < kFirsts; ++a) {
#pragma unroll
    for (int b = 0; b < kSeconds; ++b) {
      half[a].plane[kStudentInverse].at[b] *= 0.5f;
      half[a].plane[kTeacherInverse].at[b] *= 0.5f;
    }
  }
  ArmSum sum[kFirsts][kSeconds] = {};
  for (int64_t k = begin; k < end; k += kStageRows) {
    __syncthreads();  // all have read the stage before
    bring<kArmPlanes>(tables, k, tile_vertex, 1.0f, arm_stage);
    bring<kSquarePlanes>(tables, k, tile_neighbour, 1.0f, square_stage);
    __syncthreads();
    if (k / kTileSide * kTileSide == tile_neighbour) {  // the same for all threads
      const int ends = static_cast<int>(k - neighbour);
      add_ends<true>(criterion, half, arm_stage, square_stage, ends, sum);
    } else {
      add_ends<false>(criterion, half, arm_stage, square_stage, 0, sum);
    }
  }
#pragma unroll
  for (int a = 0; a < kFirsts; ++a) {
    Run<float, kSeconds> across, along;
#pragma unroll
    for (int b = 0; b < kSeconds; ++b) {
      across.at[b] = sum[a][b].across;
      along.at[b] = sum[a][b].along;
    }
    const int64_t at = (split * tables.stride + vertex + a) * tables.stride + neighbour;
    store_run(sums.across + at, across);
    store_run(sums.along + at, along);
  }
}

// Blocks enough for four on each of 256 multiprocessors, of two stages at least.
TripletPlan plan_tiles(int64_t rows, int64_t tiles) {
  constexpr int64_t kBlocks = 1024;
  const int64_t stages = (rows + kStageRows - 1) / kStageRows;
  const int64_t wanted = (kBlocks + tiles - 1) / tiles;
  const int64_t most = (stages + 1) / 2;
  const int64_t splits = wanted < most ? wanted : most;
  const int64_t split_stages = (stages + splits - 1) / splits;
  return {tiles, (stages + split_stages - 1) / split_stages, split_stages * kStageRows,
          stages * kStageRows};
}

}  // namespace

TripletPlan plan_ends(int64_t rows) {
  return plan_tiles(rows, upper_tiles(pair_stride(rows) / kTileSide));
}

TripletPlan plan_vertices(int64_t rows) {
  const int64_t tiles = pair_stride(rows) / kTileSide;
  return plan_tiles(rows, tiles * tiles);
}

template <class C>
void launch_ends(Launcher& launch, const C& criterion, int64_t rows, const SplitTables& tables,
                 const AngleSums& sums) {
  Arena arena(nullptr);
  arena.take<float>(kArmPlanes * kStageFloats);
  arena.take<float>(kArmPlanes * kStageFloats);
  arena.take<double>(kPairWarps);
  const TripletPlan plan = plan_ends(rows);
  launch("angle_ends", angle_ends<C>, {plan.blocks(), kPairThreads, 1, arena.bytes()}, criterion,
         tables, plan, sums);
}

template <class C>
void launch_vertices(Launcher& launch, const C& criterion, int64_t rows, const SplitTables& tables,
                     const AngleSums& sums) {
  Arena arena(nullptr);
  arena.take<float>(kArmPlanes * kStageFloats);
  arena.take<float>(kSquarePlanes * kStageFloats);
  const TripletPlan plan = plan_vertices(rows);
  launch("angle_vertices", angle_vertices<C>, {plan.blocks(), kPairThreads, 1, arena.bytes()},
         criterion, tables, plan, sums);
}

template void launch_ends(Launcher&, const SmoothL1&, int64_t, const SplitTables&,
                          const AngleSums&);
template void launch_ends(Launcher&, const L1&, int64_t, const SplitTables&, const AngleSums&);
template void launch_ends(Launcher&, const L2&, int64_t, const SplitTables&, const AngleSums&);
template void launch_vertices(Launcher&, const SmoothL1&, int64_t, const SplitTables&,
                              const AngleSums&);
template void launch_vertices(Launcher&, const L1&, int64_t, const SplitTables&, const AngleSums&);
template void launch_vertices(Launcher&, const L2&, int64_t, const SplitTables&, const AngleSums&);

}  // namespace fastkd::cuda
