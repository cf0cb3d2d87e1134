// SPDX-License-Identifier: Apache-2.0
#include "cuda/plan.h"

namespace fastkd::cuda {

namespace {

constexpr int64_t kWarpThreads = 32;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// The smallest power of two that is at least x.
int power_of_two(int64_t x) {
  int power = 1;
  while (power < x) power *= 2;
  return power;
}

// The longest row of each kernel that keeps a row in the registers of a warp (predicted, not yet
// measured).
struct WarpRows {
  Kernel kernel;
  int64_t classes;
};
constexpr WarpRows kWarpRows[] = {
    {Kernel::kLanes8, 256},
    {Kernel::kWarp16, 512},
    {Kernel::kWarp32, 1024},
};

Plan rows_within_warp(Kernel kernel, int lanes) {
  return {kernel, kWarpsThreads, lanes, 1, 0, 0, kWarpsThreads / lanes};
}

Plan row_of_cluster(Kernel kernel, int threads, int cluster, int64_t slice) {
  return {kernel, threads, 32, cluster, static_cast<int>(slice), 0, 1};
}

// Slices are whole vectors of 16 bytes, which hold at most 8 classes.
int64_t slice_of(int64_t classes, int cluster) { return round_up(divide_up(classes, cluster), 8); }

// A block, or the blocks of a cluster, with kRegisterClasses a thread.
Plan row_in_blocks(int64_t classes, int cluster) {
  const int64_t slice = slice_of(classes, cluster);
  const int64_t threads = round_up(divide_up(slice, kRegisterClasses), kWarpThreads);
  return row_of_cluster(cluster == 1 ? Kernel::kBlock : Kernel::kCluster, static_cast<int>(threads),
                        cluster, slice);
}

Plan plan_one_type(const LogitArgs& args, const Chip& chip) {
  const int64_t classes = args.student.classes;
  for (const WarpRows& rows : kWarpRows) {
    if (classes > rows.classes) continue;
    return rows_within_warp(
        rows.kernel, rows.kernel == Kernel::kLanes8 ? power_of_two(divide_up(classes, 8)) : 32);
  }
  for (int cluster = 1; cluster <= chip.max_cluster; cluster *= 2) {
    if (slice_of(classes, cluster) <= kRegisterClasses * chip.register_threads) {
      return row_in_blocks(classes, cluster);
    }
  }
  if (chip.max_shared_cluster > 1) {
    const int64_t slice = slice_of(classes, chip.max_shared_cluster);
    const int64_t bytes = 2 * slice * element_size(args.student.dtype);
    if (bytes + kSharedSums <= chip.shared_per_block) {
      return row_of_cluster(Kernel::kShared, chip.memory_threads, chip.max_shared_cluster, slice);
    }
  }
  return plan_streamed(chip);
}

Plan plan_rows(const LogitArgs& args, const Chip& chip) {
  const int64_t classes = args.student.classes;
  const bool one_type = args.student.dtype == args.teacher.dtype;
  if (one_type && classes <= args.teacher.classes) return plan_one_type(args, chip);
  if (classes <= 1024) {
    return rows_within_warp(Kernel::kStreamedLanes,
                            classes > 128 ? 32 : power_of_two(divide_up(classes, 8)));
  }
  return plan_streamed(chip);
}

Plan plan_columns(const LogitArgs& args, const Chip& chip) {
  const int64_t classes = args.student.classes;
  const int64_t max_slices = chip.memory_threads / kWarpThreads;
  const bool in_registers =
      args.student.dtype == args.teacher.dtype && classes <= max_slices * kSliceClasses;
  const int64_t wanted =
      in_registers ? divide_up(classes, kSliceClasses) : divide_up(classes, 4 * kSliceClasses);
  const int slices = static_cast<int>(wanted < max_slices ? wanted : max_slices);
  int pairs = 32;
  while (2 * pairs * slices <= chip.memory_threads / 2) pairs *= 2;
  const int64_t slice = divide_up(classes, slices);
  return {in_registers ? Kernel::kColumns : Kernel::kColumnsStreamed,
          pairs * slices,
          1,
          1,
          static_cast<int>(slice),
          slices,
          pairs};
}

}  // namespace

const char* kernel_name(Kernel kernel) {
  switch (kernel) {
    case Kernel::kLanes8:
      return "lanes8";
    case Kernel::kWarp16:
      return "warp16";
    case Kernel::kWarp32:
      return "warp32";
    case Kernel::kBlock:
      return "block";
    case Kernel::kCluster:
      return "cluster";
    case Kernel::kShared:
      return "shared";
    case Kernel::kStreamedLanes:
      return "streamed_lanes";
    case Kernel::kStreamedBlock:
      return "streamed_block";
    case Kernel::kColumns:
      return "columns";
    case Kernel::kColumnsStreamed:
      return "columns_streamed";
  }
  return "?";
}

Plan plan_streamed(const Chip& chip) {
  return row_of_cluster(Kernel::kStreamedBlock, chip.memory_threads, 1, 0);
}

Plan plan(const LogitArgs& args, const Chip& chip) {
  const bool contiguous_classes = args.student.stride_class == 1 &&
                                  args.teacher.stride_class == 1 &&
                                  (args.grad.data == nullptr || args.grad.stride_class == 1);
  return contiguous_classes ? plan_rows(args, chip) : plan_columns(args, chip);
}

}  // namespace fastkd::cuda
