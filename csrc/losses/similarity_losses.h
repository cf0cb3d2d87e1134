// SPDX-License-Identifier: Apache-2.0
// All losses between tables of similarities, and the one that options name.
#pragma once

#include "losses/correlation_loss.h"
#include "losses/cosine_similarity_loss.h"
#include "losses/pkt_loss.h"
#include "losses/similarity_preserving_loss.h"

namespace fastkd {

// run(loss) with the functor that the options name.
template <class Run>
inline auto with_similarity_loss(const SimilarityOptions& options, Run&& run) {
  switch (options.loss) {
    case Similarity::kSimilarityPreserving:
      return run(SimilarityPreservingLoss(options));
    case Similarity::kPkt:
      return run(PktLoss(options));
    case Similarity::kCorrelation:
      return run(CorrelationLoss(options));
    case Similarity::kCosine:
      break;
  }
  return with_criterion(options.criterion, options.beta, [&](auto criterion) {
    return run(CosineSimilarityLoss<decltype(criterion)>(options));
  });
}

}  // namespace fastkd
