// SPDX-License-Identifier: Apache-2.0
#include "cuda/row_run.h"
#include "cuda/topk_rows.h"
#include "losses/topk_kd_loss.h"

namespace fastkd {

namespace {

constexpr int64_t kShortRow = 1024;  // classes that a small block has time for

}  // namespace

Outcome topk_kd_loss(const LogitArgs& args, const NamedClasses& named, const RowOptions& rows,
                     const TopKKdLossOptions& options) {
  if (args.student.stride_class != 1 ||
      (args.grad.data != nullptr && args.grad.stride_class != 1)) {
    return {Status::kUnsupportedLayout};
  }
  const cuda::Chip chip = cuda::chip_of(args.queue.device);
  return with_topk(options, args.target != nullptr, [&](auto loss) -> Outcome {
    using Loss = decltype(loss);
    cuda::Arena arena(nullptr);
    const cuda::TopKMemory<Loss> memory(arena, args.student.classes, named.count);
    if (arena.bytes() > chip.shared_per_block) {
      return {Status::kTooLarge, -1, "topk_rows",
              "a block's shared memory does not hold a bit a class and 4 bytes a named class"};
    }
    const int threads =
        args.student.classes > kShortRow ? chip.memory_threads : cuda::kWarpsThreads;
    return cuda::run_rows<Loss>(
        args, rows, typename Loss::Params(options),
        cuda::rows_aligned(args.student, 16) && cuda::rows_aligned(args.grad, 16),
        [&](cuda::Launcher& launch, const cuda::RowCall<Loss>& call) {
          launch("topk_rows", cuda::topk_rows<Loss>, {args.rows(), threads, 1, arena.bytes()}, call,
                 named);
        });
  });
}

}  // namespace fastkd
