// SPDX-License-Identifier: Apache-2.0
// Forward: maps of both tensors, then of each sample the loss and dloss/dmap. Backward: the
// gradient of the features. Nothing of the features' size is stored between the two.
#include "losses/attention_transfer_loss.h"

#include <type_traits>

#include "core/attention_maps.h"
#include "cpu/attention_gradient.h"
#include "cpu/attention_map.h"

namespace fastkd {

namespace cpu {
namespace {

constexpr int64_t kMapTask = 65536;  // elements of both tensors

// The sum of of(i) over i in [0, count), in sixteen parts and a fixed order.
template <class Of>
double sum_over(int64_t count, Of of) {
  double part[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) part[lane] += of(i + lane);
  }
  for (int lane = 0; i + lane < count; ++lane) part[lane] += of(i + lane);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) part[lane] += part[lane + width];
  }
  return part[0];
}

double squared(double x) { return x * x; }

class AttentionLoss {
 public:
  explicit AttentionLoss(const AttentionArgs& args)
      : args_(args),
        maps_(args),
        scale_(attention_scale(args.mean, args.samples, args.positions)),
        tile_(tile_of(args)),
        tiles_(args.positions < kLanes ? 1 : 1 + (args.positions - kLanes) / tile_) {}

  Outcome run() {
    bool ok = true;
    with_power(args_.power, [&](const auto& power) { ok = maps(power); });
    if (ok && tiles_ > 1) {
      auto body = [&](int64_t begin, int64_t end) {
        for (int64_t sample = begin; sample < end; ++sample) compare(sample);
      };
      ok = parallel_for(args_.samples, kMapTask / (16 * args_.positions) + 1, body);
    }
    if (!ok) return {Status::kThreadPoolFailed, -1};
    const double sum = sum_over(args_.samples, [&](int64_t i) { return maps_.losses[i]; });
    *args_.loss = static_cast<float>(sum * scale_);
    return {};
  }

 private:
  // Where samples are few their positions are shared among threads. A map has the same bits for any
  // tile.
  static int64_t tile_of(const AttentionArgs& args) {
    constexpr int64_t kEnoughTasks = 8, kSmallest = 128;
    int64_t tile = kMapTile;
    while (tile > kSmallest && args.samples * args.positions < kEnoughTasks * tile) tile /= 2;
    return tile;
  }

  // The last tile has sixteen positions at least and may have fifteen more than the others, so that
  // no vector is partial.
  template <class Power>
  bool maps(const Power& power) {
    const int64_t elements = tile_ * (args_.student.classes + args_.teacher.classes);
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t sample = task / tiles_, first = task % tiles_ * tile_;
        const bool last = task % tiles_ == tiles_ - 1;
        const int64_t count = last ? args_.positions - first : tile_;
        const int64_t at = sample * args_.positions + first;
        attention_map(power, args_.student, args_.positions, sample, first, count,
                      maps_.student + at);
        attention_map(power, args_.teacher, args_.positions, sample, first, count,
                      maps_.teacher + at);
        if (tiles_ == 1) compare(sample);
      }
    };
    return parallel_for(args_.samples * tiles_, kMapTask / (elements + 1) + 1, body);
  }

  // The loss of a sample, and the gradient in place of the student's map.
  void compare(int64_t sample) const {
    const int64_t positions = args_.positions;
    float* const student = maps_.student + sample * positions;
    const float* const teacher = maps_.teacher + sample * positions;
    const AttentionPair pair(sum_over(positions, [&](int64_t i) { return squared(student[i]); }),
                             sum_over(positions, [&](int64_t i) { return squared(teacher[i]); }));
    maps_.losses[sample] = sum_over(
        positions, [&](int64_t i) { return squared(pair.difference(student[i], teacher[i])); });
    if (!args_.with_grad) return;
    const double dot = sum_over(positions, [&](int64_t i) {
      return pair.difference(student[i], teacher[i]) * pair.student(student[i]);
    });
    for (int64_t i = 0; i < positions; ++i) {
      student[i] = pair.gradient(student[i], teacher[i], dot, scale_);
    }
  }

  const AttentionArgs& args_;
  const AttentionMaps maps_;
  const double scale_;
  const int64_t tile_, tiles_;
};

}  // namespace
}  // namespace cpu

int64_t attention_transfer_loss_workspace(const AttentionArgs& args) {
  return AttentionMaps::bytes(args);
}

Outcome attention_transfer_loss(const AttentionArgs& args) {
  if (args.samples * args.positions == 0) {
    *args.loss = 0.0f;
    return {};
  }
  if (!has_runs(args.student, args.positions) || !has_runs(args.teacher, args.positions)) {
    return {Status::kUnsupportedLayout, -1};
  }
  return cpu::AttentionLoss(args).run();
}

Outcome attention_transfer_gradient(const AttentionGradArgs& args) {
  Outcome outcome;
  if (args.samples * args.positions * args.student.classes == 0) return outcome;
  visit(args.student.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    with_power(args.power, [&](const auto& power) {
      using Power = std::decay_t<decltype(power)>;
      outcome = cpu::AttentionGradient<T, Power>(args, power).run();
    });
  });
  return outcome;
}

}  // namespace fastkd
