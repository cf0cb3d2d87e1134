// SPDX-License-Identifier: Apache-2.0
#include "cpu/pair_gather.h"

namespace fastkd::cpu {

namespace {

// A run of weights for sixteen rows, side by side: a column of their table is a cache line a page.
template <class T>
struct WeightRun {
  using V = typename LanesOf<T>::V;
  alignas(64) T weight[kRun][kLanes];

  WeightRun(const PairTable<T>& table, int64_t j, int64_t i, int64_t count) {
    for (int64_t k = 0; k < count; ++k) V::load(table.row(j + k) + i).store(weight[k]);
  }
};

// One panel of rows and some features of gather.
template <Gather kGather, class T>
class Gathering {
 public:
  using V = typename LanesOf<T>::V;
  static constexpr int64_t kFeatures = 256;
  static constexpr int kBlock = LanesOf<T>::kRows;  // features whose sums the registers hold

  Gathering(const Panels& x, const float* rows, int64_t panel, int64_t first)
      : x_(x), rows_(rows), mine_(x.panel(panel) + first * kLanes), first_(first) {
    features_ = x.features - first < kFeatures ? x.features - first : kFeatures;
  }

  void start(int64_t f, V sum) { sum.store(sums_[f]); }
  int64_t features() const { return features_; }
  V mine(int64_t f) const { return V::load(mine_ + f * kLanes); }
  const T* sums(int64_t f) const { return sums_[f]; }

  // Adds the rows [j, j + count).
  void add(int64_t j, int64_t count, const WeightRun<T>& weights) {
    int64_t f = 0;
    for (; f + kBlock <= features_; f += kBlock) add_block<kBlock>(j, count, weights, f);
    for (; f < features_; ++f) add_block<1>(j, count, weights, f);
  }

 private:
  template <int kCount>
  void add_block(int64_t j, int64_t count, const WeightRun<T>& weights, int64_t f) {
    V from[kCount], run[kCount];
    for (int b = 0; b < kCount; ++b) {
      from[b] = mine(f + b);
      run[b] = V(static_cast<T>(0));
    }
    const float* other = rows_ + j * x_.features + first_ + f;
    for (int64_t k = 0; k < count; ++k, other += x_.features) {
      const V weight = V::load(weights.weight[k]);
      for (int b = 0; b < kCount; ++b) {
        const V row(static_cast<T>(other[b]));
        run[b] = fma(weight, kGather == Gather::kRows ? row : row - from[b], run[b]);
      }
    }
    for (int b = 0; b < kCount; ++b) (V::load(sums_[f + b]) + run[b]).store(sums_[f + b]);
  }

  Panels x_;
  const float *rows_, *mine_;
  int64_t first_, features_;
  alignas(64) T sums_[kFeatures][kLanes];
};

}  // namespace

template <Gather kGather, class T>
bool gather(const Panels& x, const float* rows, const PairTable<T>& weights, const T* own,
            float* out) {
  using Gathered = Gathering<kGather, T>;
  using V = typename LanesOf<T>::V;
  const int64_t chunks = (x.features + Gathered::kFeatures - 1) / Gathered::kFeatures;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / chunks * kLanes, first = task % chunks * Gathered::kFeatures;
      Gathered gathering(x, rows, task / chunks, first);
      const int64_t features = gathering.features();
      for (int64_t f = 0; f < features; ++f) {
        gathering.start(
            f, own == nullptr ? V(static_cast<T>(0)) : V::load(own + i) * gathering.mine(f));
      }
      for (int64_t j = 0; j < x.rows; j += kRun) {
        const int64_t count = x.rows - j < kRun ? x.rows - j : kRun;
        gathering.add(j, count, WeightRun<T>(weights, j, i, count));
      }
      for (int lane = 0; lane < kLanes && i + lane < x.rows; ++lane) {
        float* const row = out + (i + lane) * x.features + first;
        for (int64_t f = 0; f < features; ++f) {
          row[f] = static_cast<float>(gathering.sums(f)[lane]);
        }
      }
    }
  };
  const int64_t cycles =
      x.rows * (x.features < Gathered::kFeatures ? x.features : Gathered::kFeatures);
  return parallel_by_cost(x.count() * chunks, cycles, body);
}

template bool gather<Gather::kRows>(const Panels&, const float*, const PairTable<float>&,
                                    const float*, float*);
template bool gather<Gather::kRows>(const Panels&, const float*, const PairTable<double>&,
                                    const double*, float*);
template bool gather<Gather::kDifferences>(const Panels&, const float*, const PairTable<float>&,
                                           const float*, float*);
template bool gather<Gather::kDifferences>(const Panels&, const float*, const PairTable<double>&,
                                           const double*, float*);

}  // namespace fastkd::cpu
