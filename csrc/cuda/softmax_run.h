// SPDX-License-Identifier: Apache-2.0
// One call of a softmax-type loss: plan() has picked the kernel.
//
//   kd_loss.cu (picks the functor) -> launch_softmax -> run_rows -> the kernel -> losses/*.h
#pragma once

#include <type_traits>

#include "cuda/columns.h"
#include "cuda/row_run.h"
#include "cuda/rows_in_registers.h"
#include "cuda/rows_in_shared.h"
#include "cuda/rows_streamed.h"

namespace fastkd::cuda {

// ---- launches of one kernel each ----

template <class Loss, Scope kScope>
int64_t exchange_bytes() {
  Arena arena(nullptr);
  const Exchanges<Loss, kScope> exchange(arena);
  return arena.bytes();
}

template <class Loss, class T, int kItems, Scope kScope>
void launch_in_registers(Launcher& launch, const RowCall<Loss>& call, const Plan& plan) {
  const int64_t blocks = (call.args.rows() + plan.rows - 1) / plan.rows * plan.cluster;
  const int share = kScope == Scope::kCluster ? plan.cluster : plan.lanes;
  // Where a block has a whole row, its slice is the row.
  const int slice =
      kScope == Scope::kCluster ? plan.slice : static_cast<int>(call.args.student.classes);
  launch(kernel_name(plan.kernel), rows_in_registers<Loss, T, kItems, kScope>,
         {blocks, plan.threads, plan.cluster, exchange_bytes<Loss, kScope>()}, call, share, slice);
}

template <class Loss, class T>
void launch_in_shared(Launcher& launch, const RowCall<Loss>& call, const Plan& plan) {
  Arena arena(nullptr);
  SharedRow<Loss, T> memory(arena, plan.slice);
  launch(kernel_name(plan.kernel), rows_in_shared<Loss, T>,
         {call.args.rows() * plan.cluster, plan.threads, plan.cluster, arena.bytes()}, call,
         plan.cluster, plan.slice);
}

template <class Loss, class T, Scope kScope>
void launch_streamed(Launcher& launch, const RowCall<Loss>& call, const Plan& plan) {
  const int64_t blocks = (call.args.rows() + plan.rows - 1) / plan.rows;
  launch(kernel_name(plan.kernel), rows_streamed<Loss, T, kScope>,
         {blocks, plan.threads, 1, exchange_bytes<Loss, kScope>()}, call, plan.lanes);
}

template <class Loss, class T, bool kInRegisters>
void launch_columns(Launcher& launch, const RowCall<Loss>& call, const Plan& plan) {
  const int64_t pairs = call.args.outer * ((call.args.inner + 1) / kPixels);
  Arena arena(nullptr);
  arena.take<Part<Loss>>(plan.slices > 1 ? static_cast<int64_t>(plan.slices) * plan.rows * kPixels
                                         : 0);
  launch(kernel_name(plan.kernel), columns<Loss, T, kInRegisters>,
         {(pairs + plan.rows - 1) / plan.rows, plan.threads, 1, arena.bytes()}, call, plan.rows,
         plan.slices, plan.slice);
}

// ---- whichever the plan says ----

// Student and teacher have the type T.
template <class Loss, class T>
void launch_one_type(Launcher& launch, const RowCall<Loss>& call, const Plan& plan) {
  switch (plan.kernel) {
    case Kernel::kLanes8:
      return launch_in_registers<Loss, T, 8, Scope::kLanes>(launch, call, plan);
    case Kernel::kWarp16:
      return launch_in_registers<Loss, T, 16, Scope::kWarp>(launch, call, plan);
    case Kernel::kWarp32:
      return launch_in_registers<Loss, T, 32, Scope::kWarp>(launch, call, plan);
    case Kernel::kBlock:
      return launch_in_registers<Loss, T, kRegisterClasses, Scope::kBlock>(launch, call, plan);
    case Kernel::kCluster:
      return launch_in_registers<Loss, T, kRegisterClasses, Scope::kCluster>(launch, call, plan);
    case Kernel::kShared:
      return launch_in_shared<Loss, T>(launch, call, plan);
    case Kernel::kStreamedBlock:
      return launch_streamed<Loss, T, Scope::kBlock>(launch, call, plan);
    case Kernel::kColumns:
      return launch_columns<Loss, T, true>(launch, call, plan);
    case Kernel::kStreamedLanes:
    case Kernel::kColumnsStreamed:
      return;  // launch_any_types has them
  }
}

template <class Loss>
void launch_any_types(Launcher& launch, const RowCall<Loss>& call, const Plan& plan) {
  switch (plan.kernel) {
    case Kernel::kStreamedLanes:
      return launch_streamed<Loss, AnyType, Scope::kLanes>(launch, call, plan);
    case Kernel::kColumnsStreamed:
      return launch_columns<Loss, AnyType, false>(launch, call, plan);
    default:
      return launch_streamed<Loss, AnyType, Scope::kBlock>(launch, call, plan);
  }
}

// Rows are read 16 bytes at a time, columns a pair of pixels.
inline bool is_aligned(const LogitArgs& args, const Plan& plan) {
  const bool columns = takes_columns(plan.kernel);
  const auto aligned = [&](const LogitView& view) {
    return rows_aligned(view, columns ? 2 * element_size(view.dtype) : 16);
  };
  return aligned(args.student) && aligned(args.teacher) && aligned(args.grad);
}

// T: the type of student and teacher, or AnyType.
template <class Loss, class T>
Outcome launch_softmax(const LogitArgs& args, const RowOptions& rows,
                       const typename Loss::Params& params, const Plan& plan) {
  if (takes_columns(plan.kernel) && args.student.classes > args.teacher.classes) {
    return {Status::kUnsupportedLayout};  // rows know what to do with the student's other classes
  }
  const auto run = [&](const Plan& chosen) {
    return run_rows<Loss>(args, rows, params, is_aligned(args, chosen),
                          [&](Launcher& launch, const RowCall<Loss>& call) {
                            if constexpr (std::is_same_v<T, AnyType>) {
                              launch_any_types(launch, call, chosen);
                            } else {
                              launch_one_type<Loss, T>(launch, call, chosen);
                            }
                          });
  };
  const Outcome outcome = run(plan);
  if (outcome.status != Status::kNoRoomForClusters) return outcome;
  return run(plan_streamed(chip_of(args.queue.device)));
}

}  // namespace fastkd::cuda
