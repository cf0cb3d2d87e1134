// SPDX-License-Identifier: Apache-2.0
// The gradient of features from the gradient of their map: every element is read once and written
// once, times the factor of its position.
#pragma once

#include "cpu/attention_map.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "kernels.h"

namespace fastkd::cpu {

// Gradients above this bypass the caches (docs/cpu-kernels.md).
constexpr int64_t kStreamedGradientBytes = int64_t{8} << 20;

// A few dozen microseconds of work.
constexpr int64_t kGradientTask = 65536;

template <class T, class Power>
class AttentionGradient {
 public:
  AttentionGradient(const AttentionGradArgs& args, const Power& power)
      : args_(args),
        power_(power),
        x_(args.student),
        grad_(args.grad),
        positions_(args.positions),
        channels_(args.student.classes),
        scale_(static_cast<float>(static_cast<double>(*args.grad_loss) *
                                  slope_scale(args.power, args.student.classes))),
        streaming_(bytes() >= kStreamedGradientBytes) {}

  Outcome run() {
    advise_huge_pages(grad_.data, bytes());
    const bool ok = runs();
    if (!ok) return {Status::kThreadPoolFailed, -1};
    if (out_of_memory_) return {Status::kOutOfMemory, -1};
    return {};
  }

 private:
  int64_t bytes() const {
    return args_.samples * positions_ * channels_ * static_cast<int64_t>(sizeof(T));
  }

  bool runs() {
    const bool positions = runs_along_positions(x_, positions_);
    if (!has_runs(x_, positions_) || !has_runs(grad_, positions_) ||
        positions != runs_along_positions(grad_, positions_)) {
      return one_by_one();
    }
    if (!positions) return along_channels();
    return has_planes_together(x_) && has_planes_together(grad_) ? along_samples()
                                                                 : along_positions();
  }

  bool has_planes_together(const LogitView& view) const {
    return channels_ == 1 || view.stride_class == positions_;
  }

  Vec times(Vec factor, Vec x) const { return factor * power_.slope(x); }

  const float* map_grad(int64_t sample) const { return args_.map_grad + sample * positions_; }

  // A sample without gaps is one run, whose factors come again and again: no channel has an end to
  // take care of, and every store may be aligned.
  bool along_samples() {
    const int64_t elements = channels_ * positions_;
    // A task also writes down the factors of all positions.
    const int64_t preferred = kGradientTask > 16 * positions_ ? kGradientTask : 16 * positions_;
    const int64_t share = (preferred + kLanes - 1) / kLanes * kLanes;
    const int64_t shares = (elements + share - 1) / share;
    auto body = [&](int64_t begin, int64_t end) {
      const Scratch<float> factors(positions_ + kLanes);
      if (factors.data() == nullptr) {
        __atomic_store_n(&out_of_memory_, true, __ATOMIC_RELAXED);
        return;
      }
      int64_t written = -1;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t sample = task / shares, first = task % shares * share;
        const int64_t left = elements - first;
        if (sample != written) write_factors(sample, factors.data());
        written = sample;
        run_of(x_.template at<const T>(sample, 0) + first, grad_.template at<T>(sample, 0) + first,
               left < share ? left : share, factors.data(), first % positions_);
      }
      fence_streaming();
    };
    return parallel_for(args_.samples * shares, kGradientTask / (elements + 1) + 1, body);
  }

  // [positions + kLanes]: a vector that starts at any position finds its factors, those of the next
  // channel behind those of its own.
  void write_factors(int64_t sample, float* factors) const {
    const float* const from = map_grad(sample);
    for (int64_t i = 0; i < positions_; ++i) factors[i] = from[i] * scale_;
    for (int64_t i = 0; i < kLanes; ++i) factors[positions_ + i] = factors[i];
  }

  void run_of(const T* x, T* grad, int64_t count, const float* factors, int64_t position) const {
    constexpr int64_t kBytes = kLanes * static_cast<int64_t>(sizeof(T));
    int64_t i = 0;
    const auto advance = [&](int64_t by) {
      i += by;
      position += by;
      while (position >= positions_) position -= positions_;
    };
    const auto some = [&](int64_t lanes) {
      const int n = static_cast<int>(lanes < count - i ? lanes : count - i);
      if (n == 0) return;
      store_first(grad + i, times(load(factors + position), load_first(x + i, n, 0.0f)), n);
      advance(n);
    };
    if (streaming_) {
      const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(grad) % kBytes);
      if (past != 0) some((kBytes - past) / static_cast<int64_t>(sizeof(T)));
      for (; i + kLanes <= count; advance(kLanes)) {
        store_streaming(grad + i, times(load(factors + position), load(x + i)));
      }
    } else {
      for (; i + kLanes <= count; advance(kLanes)) {
        store(grad + i, times(load(factors + position), load(x + i)));
      }
    }
    some(kLanes);
  }

  // A row is a channel of a sample.
  bool along_positions() {
    const Vec scale(scale_);
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t sample = row / channels_, c = row % channels_;
        const float* const factors = map_grad(sample);
        row_of(
            x_.template at<const T>(sample, 0) + c * x_.stride_class,
            grad_.template at<T>(sample, 0) + c * grad_.stride_class, positions_,
            [&](int64_t i) { return load(factors + i) * scale; },
            [&](int64_t i, int n) { return load_first(factors + i, n, 0.0f) * scale; });
      }
    };
    return parallel_for(args_.samples * channels_, kGradientTask / (positions_ + kLanes) + 1, body);
  }

  // A row is a position of a sample.
  bool along_channels() {
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const Vec factor(args_.map_grad[row] * scale_);
        const int64_t sample = row / positions_, position = row % positions_;
        row_of(
            x_.template at<const T>(sample, position), grad_.template at<T>(sample, position),
            channels_, [&](int64_t) { return factor; }, [&](int64_t, int) { return factor; });
      }
      fence_streaming();
    };
    return parallel_for(args_.samples * positions_, kGradientTask / (channels_ + kLanes) + 1, body);
  }

  // Strides that nobody should have: the features' order differs from the gradient's.
  bool one_by_one() {
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t sample = row / positions_, position = row % positions_;
        const Vec factor(args_.map_grad[row] * scale_);
        const T* const x = x_.template at<const T>(sample, position);
        T* const grad = grad_.template at<T>(sample, position);
        for (int64_t c = 0; c < channels_; ++c) {
          const Vec all(to_float(x[c * x_.stride_class]));
          store_first(grad + c * grad_.stride_class, times(factor, all), 1);
        }
      }
    };
    return parallel_for(args_.samples * positions_, kGradientTask / (channels_ + kLanes) + 1, body);
  }

  // The last vector overlaps the one before it.
  template <class Factors, class FirstFactors>
  void row_of(const T* x, T* grad, int64_t count, Factors factors,
              FirstFactors first_factors) const {
    if (count < kLanes) {
      const int n = static_cast<int>(count);
      store_first(grad, times(first_factors(0, n), load_first(x, n, 0.0f)), n);
      return;
    }
    const bool aligned =
        reinterpret_cast<uintptr_t>(grad) % (kLanes * sizeof(T)) == 0 && count % kLanes == 0;
    if (streaming_ && aligned) {
      for (int64_t i = 0; i < count; i += kLanes) {
        store_streaming(grad + i, times(factors(i), load(x + i)));
      }
      return;
    }
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(grad + i, times(factors(i), load(x + i)));
    if (i < count) {
      i = count - kLanes;
      store(grad + i, times(factors(i), load(x + i)));
    }
  }

  const AttentionGradArgs& args_;
  const Power& power_;
  const LogitView& x_;
  const LogitView& grad_;
  const int64_t positions_, channels_;
  const float scale_;
  const bool streaming_;
  bool out_of_memory_ = false;
};

}  // namespace fastkd::cpu
