// SPDX-License-Identifier: Apache-2.0
// Rows whose classes are strided, (N, C, H, W) with dim=1: lanes run along neighbouring rows
// (pixels). Short contiguous rows, (N, 10), too: they are transposed into the tile, which spares
// each of them the sums across lanes.
//
// A tile of pixels by all classes is copied once into dense float planes: read in place, the class
// stride (a power of two for most maps) would put every class into the same cache set. Exponentials
// then replace the logits in the tile, and the gradient is written from them.
#pragma once

#include "cpu/column_tile.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/softmax_call.h"

namespace fastkd::cpu {

constexpr int kMaxTileVectors = 8;

// Classes summed one by one before they join the total: rounding grows with its square root.
constexpr int64_t kSumBlock = 64;

template <class Loss>
class ColumnDriver {
  using State = typename Loss::template State<Vec>;
  using HardState = typename Loss::template HardState<Vec>;
  using GradScale = typename Loss::template GradScale<Vec>;
  using Exps = typename Loss::template Exps<Vec>;
  using Tile = ColumnTile;

 public:
  explicit ColumnDriver(const SoftmaxCall<Loss>& call)
      : call_(call),
        shared_(call.shared_classes()),
        classes_(call.args.student.classes),
        vectors_(tile_vectors(call)),
        tiles_per_outer_((call.args.inner + pixels() - 1) / pixels()),
        out_of_memory_(false) {}

  Outcome run() {
    constexpr int64_t kElementsPerTask = 65536;
    const int64_t grain = kElementsPerTask / (classes_ * pixels()) + 1;
    auto body = [&](int64_t begin, int64_t end) { tiles(begin, end); };
    if (!parallel_for(call_.args.outer * tiles_per_outer_, grain, body)) {
      return {Status::kThreadPoolFailed, -1};
    }
    if (out_of_memory_) return {Status::kOutOfMemory, -1};
    return {};
  }

 private:
  // Lanes of one vector of the tile, kept from the statistics to the gradient.
  struct Lanes {
    Vec max_student, max_teacher, max_tail;
    Vec weight, target;
    GradScale scale;
    HardState hard;
  };

  // As many pixels as keep the planes within half of a typical L2 cache, and long runs of memory.
  static int tile_vectors(const SoftmaxCall<Loss>& call) {
    constexpr int64_t kTileBytes = int64_t{256} << 10;
    const int64_t vector_bytes = call.args.student.classes * Loss::kExps * kLanes * 4;
    const int preferred = call.args.student.dtype == Dtype::kFloat32 ? 4 : kMaxTileVectors;
    int vectors = preferred;
    while (vectors > 1 && vectors * vector_bytes > kTileBytes) vectors /= 2;
    return vectors;
  }

  int64_t pixels() const { return vectors_ * kLanes; }

  void tiles(int64_t begin, int64_t end) {
    const int64_t plane = classes_ * pixels();
    const Scratch<float> scratch(Loss::kExps * plane);
    if (scratch.data() == nullptr) {
      __atomic_store_n(&out_of_memory_, true, __ATOMIC_RELAXED);
      return;
    }
    Lanes lanes[kMaxTileVectors];
    for (int64_t index = begin; index < end; ++index) {
      Tile tile = tile_at(index);
      for (int k = 0; k < Loss::kExps; ++k) tile.plane[k] = scratch.data() + k * plane;
      read(tile, lanes);
      const Tile next = tile_at(index + 1 < end ? index + 1 : index);
      for (int v = 0; v * kLanes < tile.pixels; ++v)
        sum(tile, v, lanes[v], ClassPrefetch(next, v, call_.args));
      if (call_.wants_grad()) write(tile, lanes);
    }
    if (call_.wants_grad()) fence_streaming();
  }

  Tile tile_at(int64_t index) const {
    Tile tile{};
    tile.stride = pixels();
    tile.outer = index / tiles_per_outer_;
    tile.first_pixel = index % tiles_per_outer_ * pixels();
    const int64_t left = call_.args.inner - tile.first_pixel;
    tile.pixels = static_cast<int>(left < pixels() ? left : pixels());
    return tile;
  }

  // Fills the planes and finds the maxima.
  void read(const Tile& tile, Lanes* lanes) const {
    for (int v = 0; v < vectors_; ++v) {
      lanes[v].max_student = lanes[v].max_teacher = lanes[v].max_tail = Vec(kLowest);
    }
    const LogitArgs& args = call_.args;
    read_plane(args.student, tile, tile.plane[0], 0, shared_,
               [&](int v, Vec x) { lanes[v].max_student = max(x, lanes[v].max_student); });
    read_plane(args.teacher, tile, tile.plane[1], 0, shared_,
               [&](int v, Vec x) { lanes[v].max_teacher = max(x, lanes[v].max_teacher); });
    read_plane(args.student, tile, tile.plane[0], shared_, classes_,
               [&](int v, Vec x) { lanes[v].max_tail = max(x, lanes[v].max_tail); });
  }

  // Statistics, losses and gradient scales of sixteen pixels; exponentials replace the logits.
  void sum(const Tile& tile, int v, Lanes& lanes, ClassPrefetch ahead) const {
    const auto params = call_.params;
    const bool logits = Loss::wants_logits(params);
    const Labels<Vec> labels = labels_of(tile, v, lanes);
    float* const student = tile.plane[0] + v * kLanes;
    float* const teacher = tile.plane[1] + v * kLanes;
    const int64_t end = shared_ * pixels(), step = pixels();
    State state = Loss::start(lanes.max_student, lanes.max_teacher);
    for (int64_t block = 0; block < end; block += kSumBlock * step) {
      State part = Loss::start(lanes.max_student, lanes.max_teacher);
      const int64_t block_end = block + kSumBlock * step < end ? block + kSumBlock * step : end;
      for (int64_t at = block; at < block_end; at += step) {
        ahead.next_class();
        const Vec s = load(student + at);
        const Exps exps = Loss::update(params, part, s, load(teacher + at));
        if (logits) Loss::add_logit(part, s, AllLanes{});
        for (int k = 0; k < Loss::kExps; ++k) exps.value[k].store(tile.plane[k] + v * kLanes + at);
      }
      Loss::add(state, part);
    }
    if constexpr (Loss::kRefines) state = Loss::with_refined(state, refine(tile, v, state));
    lanes.hard = Loss::hard_state(state);
    if (classes_ > shared_) {
      HardState tail = Loss::start_hard(lanes.max_tail);
      for (int64_t c = shared_; c < classes_; ++c) {
        Loss::update_hard(tail, load(student + c * pixels()), AllLanes{});
      }
      lanes.hard = Loss::combine_hard(lanes.hard, tail, static_cast<float>(shared_),
                                      static_cast<float>(classes_ - shared_));
    }
    const float classes = static_cast<float>(classes_);
    const Vec loss = Loss::finish(call_.params, state, lanes.hard, labels, classes);
    const int count = tile.pixels - v * kLanes;
    float* out = call_.row_loss + first_row(tile, v);
    const Vec weighted = zero_where_zero(lanes.weight, lanes.weight * loss);
    if (count >= kLanes) {
      weighted.store(out);
    } else {
      store_first(out, weighted, count);
    }
    if (call_.wants_grad()) {
      lanes.scale = Loss::grad_scale(call_.params, state, lanes.hard, labels,
                                     lanes.weight * Vec(call_.grad_factor), classes);
    }
  }

  // Sums that need the pixels' own, over the kept exponentials, which become what the gradient
  // needs.
  State refine(const Tile& tile, int v, const State& row) const {
    const auto params = call_.params;
    const typename Loss::template Normalizer<Vec> normalizer = Loss::normalizer(row);
    const int64_t end = shared_ * pixels(), step = pixels();
    State total = Loss::start(row.max_student, row.max_teacher);
    for (int64_t block = 0; block < end; block += kSumBlock * step) {
      State part = Loss::start(row.max_student, row.max_teacher);
      const int64_t block_end = block + kSumBlock * step < end ? block + kSumBlock * step : end;
      for (int64_t at = block; at < block_end; at += step) {
        Exps exps;
        for (int k = 0; k < Loss::kExps; ++k) {
          exps.value[k] = load(tile.plane[k] + v * kLanes + at);
        }
        Loss::refine(params, part, normalizer, exps);
        exps.value[1].store(tile.plane[1] + v * kLanes + at);
      }
      Loss::add(total, part);
    }
    return total;
  }

  int64_t first_row(const Tile& tile, int v) const {
    return tile.outer * call_.args.inner + tile.first_pixel + v * kLanes;
  }

  // Also the lanes' weights and targets, which the gradient needs again. Hides the labels' classes
  // where the loss wants them hidden.
  Labels<Vec> labels_of(const Tile& tile, int v, Lanes& lanes) const {
    float weight[kLanes] = {}, target[kLanes] = {}, of_student[kLanes] = {},
          of_teacher[kLanes] = {};
    const int64_t row = first_row(tile, v);
    const int left = tile.pixels - v * kLanes;
    const int count = left < kLanes ? left : kLanes;
    for (int lane = 0; lane < count; ++lane) weight[lane] = call_.weights(row + lane);
    if constexpr (Loss::kHasLabel) {
      float* const student = tile.plane[0] + v * kLanes;
      float* const teacher = tile.plane[1] + v * kLanes;
      const int64_t* y = call_.args.target + row;
      for (int lane = 0; lane < count; ++lane) {
        const int64_t label = y[lane] == call_.weights.ignore_index ? 0 : y[lane];
        const int64_t at = label * pixels() + lane;
        target[lane] = static_cast<float>(label);
        of_student[lane] = student[at];
        if constexpr (Loss::kHidesLabel) {
          of_teacher[lane] = teacher[at];
          student[at] = teacher[at] = -INFINITY;
        }
      }
      if constexpr (Loss::kHidesLabel) {
        lanes.max_student = maximum(student);
        lanes.max_teacher = maximum(teacher);
      }
    }
    lanes.weight = Vec::load(weight);
    lanes.target = Vec::load(target);
    return {Vec::load(of_student), Vec::load(of_teacher)};
  }

  // Over the classes of sixteen pixels.
  Vec maximum(const float* plane) const {
    Vec maximum(kLowest);
    for (int64_t c = 0; c < shared_; ++c) maximum = max(load(plane + c * pixels()), maximum);
    return maximum;
  }

  void write(const Tile& tile, const Lanes* lanes) const {
    visit(call_.args.grad.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      if (call_.args.grad.stride_inner != 1) {
        for (int v = 0; v * kLanes < tile.pixels; ++v) write_transposed<T>(tile, v, lanes[v]);
        return;
      }
      // Vectors that fill a cache line together: their scales stay in registers over all classes.
      constexpr int kGroup = 4 / sizeof(T);
      for (int v = 0; v * kLanes < tile.pixels; v += kGroup) {
        if ((v + kGroup) * kLanes <= tile.pixels) {
          write_group<T, kGroup>(tile, v, lanes + v);
        } else {
          for (int i = v; i * kLanes < tile.pixels; ++i) write_group<T, 1>(tile, i, lanes + i);
        }
      }
    });
  }

  template <class T, int kGroup>
  void write_group(const Tile& tile, int v, const Lanes* lanes) const {
    const LogitView& view = call_.args.grad;
    T* out = view.template at<T>(tile.outer, tile.first_pixel + v * kLanes);
    const int count = tile.pixels - v * kLanes;
    const bool streaming = call_.streaming && view.stride_class % kLanes == 0 &&
                           reinterpret_cast<uintptr_t>(out) % (sizeof(T) * kLanes) == 0;
    Lanes local[kGroup];  // a copy that no store can alias stays in registers
    bool all_count = true;
    for (int i = 0; i < kGroup; ++i) {
      local[i] = lanes[i];
      all_count &= all_nonzero(lanes[i].weight);
    }
    const auto each_class = [&](auto put) {
      T* row = out;
      for (int64_t c = 0; c < classes_; ++c, row += view.stride_class) {
        for (int i = 0; i < kGroup; ++i) {
          put(row + i * kLanes, grad_at(tile, c, v + i, local[i]), local[i]);
        }
      }
    };
    if (count < kLanes) {
      each_class([&](T* p, Vec g, const Lanes& l) {
        store_first(p, zero_where_zero(l.weight, g), count);
      });
    } else if (!all_count) {
      each_class([](T* p, Vec g, const Lanes& l) { store(p, zero_where_zero(l.weight, g)); });
    } else if (streaming) {
      each_class([](T* p, Vec g, const Lanes&) { store_streaming(p, g); });
    } else {
      each_class([](T* p, Vec g, const Lanes&) { store(p, g); });
    }
  }

  // The gradient takes the place of the first plane and leaves from there, row by row.
  template <class T>
  void write_transposed(const Tile& tile, int v, const Lanes& lanes) const {
    const LogitView& view = call_.args.grad;
    float* plane = tile.plane[0] + v * kLanes;
    for (int64_t c = 0; c < classes_; ++c) {
      zero_where_zero(lanes.weight, grad_at(tile, c, v, lanes)).store(plane + c * pixels());
    }
    const int left = tile.pixels - v * kLanes;
    for (int lane = 0; lane < kLanes && lane < left; ++lane) {
      T* row = view.template at<T>(tile.outer, tile.first_pixel + v * kLanes + lane);
      for (int64_t c = 0; c < classes_; ++c) {
        row[c * view.stride_class] = from_float<T>(plane[c * pixels() + lane]);
      }
    }
  }

  Vec grad_at(const Tile& tile, int64_t c, int v, const Lanes& lanes) const {
    const int64_t at = c * pixels() + v * kLanes;
    Vec grad(0.0f);
    if (c < shared_) {
      Exps exps;
      for (int k = 0; k < Loss::kExps; ++k) exps.value[k] = load(tile.plane[k] + at);
      grad = Loss::grad(lanes.scale, exps);
    } else if constexpr (Loss::kHard) {
      grad = Loss::grad_hard_only(lanes.scale, load(tile.plane[0] + at) - lanes.hard.max);
    }
    if constexpr (Loss::kHasLabel) {
      grad =
          subtract_where_equal(grad, lanes.scale.label, Vec(static_cast<float>(c)), lanes.target);
    }
    return grad;
  }

  const SoftmaxCall<Loss>& call_;
  const int64_t shared_, classes_;
  const int vectors_;
  const int64_t tiles_per_outer_;
  bool out_of_memory_;
};

}  // namespace fastkd::cpu
