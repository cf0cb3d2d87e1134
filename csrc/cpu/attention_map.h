// SPDX-License-Identifier: Apache-2.0
// The attention map of one tensor: the mean over channels of |x|^p, for some positions of a sample.
//
// Sums run over at most 64 values before they join a total. A position's sum takes its channels in
// the same order whatever positions are computed beside it.
#pragma once

#include "core/feature_layout.h"
#include "cpu/vec_memory.h"
#include "cpu/vec_power.h"

namespace fastkd::cpu {

// Positions computed together: their sums stay in the L1 cache while the channels pass.
constexpr int64_t kMapTile = 4096;

constexpr int64_t kMapRun = 64;

// Maps above this are read four channels side by side: their sums cost the caches more than the
// four streams cost the prefetchers. Below, one channel after another is one stream, and twice as
// fast.
constexpr int64_t kLargeMap = 1024;

// Four values, added as two pairs.
template <class Power, class At>
inline Vec sum_of_four(const Power& power, At at) {
  return (power.value(at(0)) + power.value(at(1))) + (power.value(at(2)) + power.value(at(3)));
}

// Neighbouring positions of a sample, whose channels are apart.
template <class T, class Power>
class MapAlongPositions {
 public:
  MapAlongPositions(const Power& power, const LogitView& view, int64_t positions)
      : power_(power),
        channels_(view.classes),
        step_(view.stride_class),
        four_at_once_(positions > kLargeMap) {}

  // `count` < kMapTile + kLanes positions from `first` on.
  void operator()(const T* first, int64_t count, float* map) const {
    float total[kSums], run[kSums];
    const int64_t filled = (count + kLanes - 1) / kLanes * kLanes;
    add_run(first, 0, count, filled, total);
    for (int64_t c = kMapRun; c < channels_; c += kMapRun) {
      add_run(first, c, count, filled, run);
      for (int64_t i = 0; i < filled; i += kLanes)
        (load(total + i) + load(run + i)).store(total + i);
    }
    const Vec channels(static_cast<float>(channels_));
    at_vectors(count, [&](int64_t sum, int64_t position, int lanes) {
      store_some(map + position, load(total + sum) / channels, lanes);
    });
  }

 private:
  static constexpr int64_t kSums = kMapTile + kLanes;

  // visit(where in the sums, first position, positions). The last vector overlaps the one before
  // it, so that only maps of less than sixteen positions have partial ones.
  template <class Visit>
  static void at_vectors(int64_t count, Visit visit) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) visit(i, i, kLanes);
    if (i == count) return;
    if (count >= kLanes) {
      visit(i, count - kLanes, kLanes);
    } else {
      visit(i, i, static_cast<int>(count));
    }
  }

  static Vec load_some(const T* p, int lanes) {
    return lanes == kLanes ? load(p) : load_first(p, lanes, 0.0f);
  }
  static void store_some(float* p, Vec x, int lanes) {
    if (lanes == kLanes) return x.store(p);
    store_first(p, x, lanes);
  }

  // The sums of channels [begin, begin + kMapRun).
  void add_run(const T* first, int64_t begin, int64_t count, int64_t filled, float* sums) const {
    for (int64_t i = 0; i < filled; i += kLanes) Vec(0.0f).store(sums + i);
    const int64_t end = begin + kMapRun < channels_ ? begin + kMapRun : channels_;
    int64_t c = begin;
    for (; four_at_once_ && c + 4 <= end; c += 4) {
      const T* const row = first + c * step_;
      at_vectors(count, [&](int64_t sum, int64_t position, int lanes) {
        const T* const p = row + position;
        const Vec four =
            sum_of_four(power_, [&](int i) { return load_some(p + i * step_, lanes); });
        (load(sums + sum) + four).store(sums + sum);
      });
    }
    for (; c < end; ++c) {
      const T* const row = first + c * step_;
      at_vectors(count, [&](int64_t sum, int64_t position, int lanes) {
        const Vec x = load_some(row + position, lanes);
        (load(sums + sum) + power_.value(x)).store(sums + sum);
      });
    }
  }

  const Power& power_;
  const int64_t channels_, step_;
  const bool
      four_at_once_;  // by the whole map, not the tile, so that sums are the same in any tile
};

// One position, whose channels are neighbours.
template <class T, class Power>
inline float map_along_channels(const Power& power, const T* x, int64_t channels) {
  Vec total(0.0f);
  for (int64_t begin = 0; begin < channels; begin += kMapRun * kLanes) {
    const int64_t end = begin + kMapRun * kLanes < channels ? begin + kMapRun * kLanes : channels;
    Vec run(0.0f);
    int64_t c = begin;
    for (; c + 4 * kLanes <= end; c += 4 * kLanes) {
      run = run + sum_of_four(power, [&](int i) { return load(x + c + i * kLanes); });
    }
    for (; c + kLanes <= end; c += kLanes) run = run + power.value(load(x + c));
    if (c < end) run = run + power.value(load_first(x + c, static_cast<int>(end - c), 0.0f));
    total = total + run;
  }
  return sum_lanes(total) / static_cast<float>(channels);
}

// Positions [first, first + count) of a sample's map, count < kMapTile + kLanes.
template <class Power>
inline void attention_map(const Power& power, const LogitView& view, int64_t positions,
                          int64_t sample, int64_t first, int64_t count, float* map) {
  visit(view.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* const x = view.template at<const T>(sample, first);
    if (runs_along_positions(view, positions)) {
      MapAlongPositions<T, Power>(power, view, positions)(x, count, map);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        map[i] = map_along_channels(power, x + i * view.stride_inner, view.classes);
      }
    }
  });
}

}  // namespace fastkd::cpu
