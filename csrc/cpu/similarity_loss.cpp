// SPDX-License-Identifier: Apache-2.0
// similarity_loss -> pair_table (products) -> similarity_rows (losses/*.h) -> pair_gather
// (gradient)
#include <math.h>

#include "cpu/pair_gather.h"
#include "cpu/similarity_rows.h"
#include "kernels.h"

namespace fastkd {

namespace cpu {
namespace {

// Inner products of a batch that lies within a tenth of its distance from the origin agree in their
// first digits, as do cosines near 1 or -1, whatever the norms: then they, and what makes the
// gradient, are doubles, at two to three times the time.
constexpr double kWideShare = 0.99, kWideCosine = 0.98;

template <class T>
bool fill(const Side<T>& side, const Panels& panels, double eps) {
  if (!inner_products(panels, side.products)) return false;
  for (int64_t i = 0; i < side.products.stride; ++i) {
    side.inverse_norms[i] = inverse_norm(static_cast<double>(side.products.row(i)[i]), eps);
  }
  return true;
}

// Whether some cosine of two examples has too few digits left as a float. of_rows: scratch, [rows].
template <class Loss>
bool has_near_directions(const Side<float>& side, int64_t rows, double* of_rows, bool* ok) {
  constexpr double kLeast = Loss::kCountsOpposites ? kOpposite : -kWideCosine;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      DoubleVec largest(0.0);
      for (int64_t j = 0; j < side.products.stride; j += kLanes) {
        double cosines[kLanes];
        side.entries<true>(i, j).store(cosines);
        if (i >= j && i < j + kLanes) cosines[i - j] = 0.0;  // with itself
        const DoubleVec x = DoubleVec::load(cosines);
        largest = max(largest, max(x * DoubleVec(1.0 / kWideCosine), x * DoubleVec(1.0 / kLeast)));
      }
      of_rows[i] = max_lanes(largest);
    }
  };
  *ok &= parallel_by_cost(rows, 2 * rows, body);
  for (int64_t i = 0; i < rows; ++i) {
    if (of_rows[i] > 1.0) return true;
  }
  return false;
}

// On filled tables.
template <class T, class Loss>
Outcome run_in(const Loss& loss, const PairArgs& args, const SimilarityOptions& options,
               const SimilarityWorkspace& memory) {
  const int64_t n = args.rows;
  bool ok = true;
  const double scale = loss.scale() * inverse_relations(options.reduction, n, 2);
  const bool moves = !Loss::kCosines || args.student.features > 1;
  const SimilarityRows<Loss, T> rows(loss, memory, n, scale,
                                     options.reduction == PairReduction::kMeanDistinct,
                                     args.with_grad && moves);
  auto each_row = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) memory.row_losses[i] = rows.row(i);
  };
  ok = ok && parallel_by_cost(n, 6 * n, each_row);
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += memory.row_losses[i];
  *args.loss = static_cast<float>(scale * sum);
  const bool finite = ::fabs(sum) <= DBL_MAX;
  if (args.with_grad && (!finite || !moves)) {
    const float everywhere = finite ? 0.0f : NAN;
    for (int64_t i = 0; i < n * args.student.features; ++i) args.grad[i] = everywhere;
  } else if (args.with_grad) {
    if constexpr (Loss::kNormalisesRows) {
      auto each_panel = [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) rows.panel(p * kLanes);
      };
      ok = ok && parallel_by_cost(memory.panels[0].count(), 32 * n, each_panel);
    }
    ok = ok && gather<Gather::kRows>(memory.panels[0], args.student.data, rows.weights(),
                                     rows.own(), args.grad);
  }
  if (!ok) return {Status::kThreadPoolFailed};
  return {};
}

template <class T>
bool fill_both(const SimilarityWorkspace& memory, double eps) {
  return fill(memory.side(0, T{}), memory.panels[0], eps) &&
         fill(memory.side(1, T{}), memory.panels[1], eps);
}

template <class Loss>
Outcome run_similarity(const Loss& loss, const PairArgs& args, const SimilarityOptions& options) {
  Workspace workspace(args.workspace);
  const SimilarityWorkspace memory(workspace, args);
  bool ok =
      pack_panels(args.student, memory.panels[0]) && pack_panels(args.teacher, memory.panels[1]);
  // Not below: NaN is looked at closely too.
  bool narrow = ok && !loss.wants_doubles() && offset_share(memory.panels[0]) < kWideShare &&
                offset_share(memory.panels[1]) < kWideShare;
  if (narrow) {
    ok = fill_both<float>(memory, loss.norm_eps());
    for (int side = 0; Loss::kCosines && side < 2 && narrow; ++side) {
      narrow =
          !has_near_directions<Loss>(memory.side(side, float{}), args.rows, memory.row_losses, &ok);
    }
  }
  if (!narrow) ok = ok && fill_both<double>(memory, loss.norm_eps());
  if (!ok) return {Status::kThreadPoolFailed};
  return narrow ? run_in<float>(loss, args, options, memory)
                : run_in<double>(loss, args, options, memory);
}

}  // namespace
}  // namespace cpu

int64_t similarity_loss_workspace(const PairArgs& args, const SimilarityOptions& options) {
  (void)options;  // all the losses need the same
  Workspace workspace(nullptr);
  const cpu::SimilarityWorkspace memory(workspace, args);
  return workspace.bytes();
}

Outcome similarity_loss(const PairArgs& args, const SimilarityOptions& options) {
  return with_similarity_loss(options,
                              [&](auto loss) { return cpu::run_similarity(loss, args, options); });
}

}  // namespace fastkd
