// SPDX-License-Identifier: Apache-2.0
// Which kernel serves which rows on which chip. A pure host function of class count, types, strides
// and chip, never of the number of rows: a row's result does not depend on its batch.
#pragma once

#include "core/logit_args.h"

namespace fastkd::cuda {

enum class Kernel : int32_t {
  kLanes8,  // lanes of a warp share a row, 8 classes each
  kWarp16,  // a warp a row, 16 or 32 classes a lane
  kWarp32,
  kBlock,            // a block a row, 32 classes a thread
  kCluster,          // a cluster of blocks a row, 32 classes a thread
  kShared,           // a cluster a row, the logits in shared memory
  kStreamedLanes,    // read twice; lanes of a warp share a row
  kStreamedBlock,    // read twice; a block a row
  kColumns,          // classes strided: slices of classes in registers
  kColumnsStreamed,  // classes strided, read twice
};
const char* kernel_name(Kernel kernel);

// What the kernels are compiled for; a plan keeps within it.
constexpr int kWarpsThreads = 128;     // of a block whose rows stay within warps
constexpr int kRegisterThreads = 256;  // of kBlock and kCluster, at most
constexpr int kRegisterClasses = 32;   // a thread of these
constexpr int kMemoryThreads = 512;    // of the others, at most
constexpr int kPixels = 2;             // a thread of columns
constexpr int kSliceClasses = 12;      // a thread of kColumns
// Of kShared besides the logits: 5,136 bytes for the sums of a loss that refines, and what the
// emulator puts between arrays.
constexpr int64_t kSharedSums = 5376;

// What a plan must know of a chip.
struct Chip {
  int capability = 0;            // 10 * major + minor
  int max_cluster = 1;           // blocks of kRegisterThreads, two a multiprocessor; 1: no clusters
  int max_shared_cluster = 1;    // blocks, each with all the shared memory it may ask for
  int64_t shared_per_block = 0;  // bytes a block may ask for
  int multiprocessors = 1;
  // Tests simulate small blocks.
  int register_threads = kRegisterThreads;
  int memory_threads = kMemoryThreads;
};

struct Plan {
  Kernel kernel;
  int threads;  // of a block
  int lanes;    // of a row within a warp
  int cluster;  // blocks of a row
  int slice;    // classes of a block of a cluster, or of a thread slice of columns
  int slices;   // of columns
  int rows;     // of a block; pixel pairs of columns
};

Plan plan(const LogitArgs& args, const Chip& chip);
// For rows of any length on any chip.
Plan plan_streamed(const Chip& chip);

inline bool takes_columns(Kernel kernel) {
  return kernel == Kernel::kColumns || kernel == Kernel::kColumnsStreamed;
}

// These are compiled for student and teacher of any types alone; the others for one type, and the
// streamed block for both.
inline bool takes_any_types(Kernel kernel) {
  return kernel == Kernel::kStreamedLanes || kernel == Kernel::kColumnsStreamed;
}

}  // namespace fastkd::cuda
