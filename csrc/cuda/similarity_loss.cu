// SPDX-License-Identifier: Apache-2.0
// similarity_loss -> pair_table (inner products) -> similarity_rows -> pair_gradient
#include "cuda/pair_gradient.h"
#include "cuda/similarity_rows.h"

namespace fastkd {

namespace cuda {
namespace {

// One block: the loss of all rows.
__global__ void __launch_bounds__(kPairThreads, kLightBlocks)
    sum_similarity(const int64_t rows, const double scale, const double* const values,
                   SimilaritySummary* const summary, float* const loss) {
  Arena arena(shared_memory());
  double* const warps = arena.take<double>(kPairWarps);
  double sum = 0.0;
  for (int64_t i = thread_index(); i < rows; i += kPairThreads) sum += values[i];
  sum = block_sum(sum, warps);
  if (thread_index() == 0) {
    const double total = scale * sum;
    summary->poison = ::fabs(total) <= DBL_MAX ? 0.0 : static_cast<double>(NAN);
    *loss = static_cast<float>(total);
  }
}

template <class Loss>
void launch_rows(Launcher& launch, const SimilarityCall<Loss>& call) {
  Arena arena(nullptr);
  arena.take<double>(4 * kPairWarps);
  launch("similarity_rows", similarity_rows<Loss>, {call.rows, kPairThreads, 1, arena.bytes()},
         call);
}

template <class Loss>
void launch_pulls(Launcher& launch, const SimilarityCall<Loss>& call) {
  Arena arena(nullptr);
  arena.take<double>(kPairWarps);
  launch("similarity_pulls", similarity_pulls<Loss>, {call.rows, kPairThreads, 1, arena.bytes()},
         call);
}

template <class Loss>
Outcome run_similarity(const Loss& loss, const PairArgs& args, const SimilarityOptions& options) {
  Workspace workspace(args.workspace);
  const SimilarityCall<Loss> call(workspace, loss, args, options);
  Launcher launch(args.queue);
  launch_products(launch, args, call.products, loss.norm_eps(), call.student_inverses,
                  call.teacher_inverses);
  launch_rows(launch, call);
  Arena arena(nullptr);
  arena.take<double>(kPairWarps);
  launch("sum_similarity", sum_similarity, {1, kPairThreads, 1, arena.bytes()}, call.rows,
         call.scale, call.values, call.summary, args.loss);
  if (args.with_grad) {
    launch_pulls(launch, call);
    if constexpr (Loss::kCountsOpposites) {
      launch_wide_gradient(launch, args, {call.pulls, call.stretches}, false, nullptr);
    } else {
      launch_pair_gradient(launch, args, {call.pulls, call.stretches}, true, nullptr);
    }
  }
  return launch.outcome();
}

}  // namespace
}  // namespace cuda

int64_t similarity_loss_workspace(const PairArgs& args, const SimilarityOptions& options) {
  return with_similarity_loss(options, [&](const auto& loss) {
    Workspace workspace(nullptr);
    const cuda::SimilarityCall call(workspace, loss, args, options);
    return workspace.bytes();
  });
}

Outcome similarity_loss(const PairArgs& args, const SimilarityOptions& options) {
  return with_similarity_loss(
      options, [&](const auto& loss) { return cuda::run_similarity(loss, args, options); });
}

}  // namespace fastkd
