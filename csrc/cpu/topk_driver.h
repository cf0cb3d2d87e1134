// SPDX-License-Identifier: Apache-2.0
// Rows of a student's logits whose teacher names K classes: lanes along the classes.
//
// A bit a class says whether it is named. Where a vector has such a class its logit is put aside
// and reads -inf, and its gradient is put in place before the vector is stored; the named classes
// are then done by themselves, sixteen at a time.
#pragma once

#include "cpu/named_classes.h"
#include "cpu/named_places.h"
#include "cpu/row_chunks.h"
#include "cpu/softmax_call.h"

namespace fastkd::cpu {

// Per-thread scratch: a chunk, what is kept of each class, and the named classes of a row.
struct TopKScratch {
  int64_t chunks, lanes;
  Scratch<float> chunk;           // [kChunk] logits
  Scratch<float> exps;            // [kExps, plane_stride]
  Scratch<float> part_max;        // [chunks]
  NamedPlaces places;             // in the three below
  Scratch<float> logit, teacher;  // [lanes] of the student, of the teacher; -inf beyond the last
  Scratch<float> grad;            // [lanes]

  TopKScratch(int exps_per_class, int64_t all_classes, int64_t named)
      : chunks((all_classes + kChunk - 1) / kChunk),
        lanes((named + kLanes - 1) / kLanes * kLanes),
        chunk(kChunk),
        exps(exps_per_class * plane_stride(all_classes)),
        part_max(chunks),
        places(all_classes),
        logit(lanes),
        teacher(lanes),
        grad(lanes) {}

  bool ok() const {
    return chunk.data() != nullptr && exps.data() != nullptr && part_max.data() != nullptr &&
           places.ok() && logit.data() != nullptr && teacher.data() != nullptr &&
           grad.data() != nullptr;
  }
};

template <class Loss>
class TopKDriver {
  using Params = typename Loss::Params;
  using Row = typename Loss::Row;
  using GradScale = typename Loss::GradScale;
  using Rest = typename Loss::template Rest<float>;
  using Named = typename Loss::template Named<float>;
  using Exps = typename Loss::template Exps<Vec>;

 public:
  TopKDriver(const SoftmaxCall<Loss>& call, const NamedClasses& named)
      : call_(call),
        named_(named),
        classes_(call.args.student.classes),
        smooths_(Loss::smooths(call.params)) {}

  Outcome run() {
    return for_rows(
        call_, classes_ + named_.count,
        [&] { return TopKScratch(Loss::kExps, classes_, named_.count); },
        [&](int64_t row, const TopKScratch& scratch) { one_row(row, scratch); });
  }

 private:
  void one_row(int64_t row, const TopKScratch& scratch) {
    const LogitArgs& args = call_.args;
    const float weight = call_.weights(row);
    if (weight == 0.0f) {
      call_.row_loss[row] = 0.0f;
      if (call_.wants_grad()) zero_gradient(args, row);
      return;
    }
    const Params params = call_.params;
    const int64_t student_row = row_offset(args, args.student, row);
    const int64_t label = Loss::kHard ? args.target[row] : -1;
    const float label_logit = Loss::kHard ? logit_at(args.student, student_row + label) : 0.0f;
    const int64_t told = mark_named(row, scratch);
    double logit_sum = 0.0;
    Rest rest{};
    visit(args.student.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const T* const logits = static_cast<const T*>(args.student.data) + student_row;
      rest = sum_rest(row, logits, logit_sum, scratch);
    });
    const Row whole = Loss::settle(params, rest, sum_named(told, scratch));
    const float classes = static_cast<float>(classes_);
    logit_sum -= static_cast<double>(classes_) * static_cast<double>(whole.max_hard);
    call_.row_loss[row] =
        weight * Loss::finish(params, whole, divergence(whole, told, scratch), label_logit,
                              static_cast<float>(logit_sum), classes);
    if (call_.wants_grad()) {
      const GradScale scale =
          Loss::grad_scale(params, whole, rest, weight * call_.grad_factor, classes);
      differentiate_named(whole, scale, told, label, scratch);
      visit(args.grad.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        T* const out = static_cast<T*>(args.grad.data) + row_offset(args, args.grad, row);
        write_grad(out, rest, scale, scratch);
        if (!call_.streaming) write_named(out, row, scratch);
        if (Loss::kHard && !scratch.places.has(label)) {
          mark_label(out, label, rest, scale, scratch);
        }
      });
    }
    clear_named(row, scratch);
  }

  // ---- forward ----

  const float* values(int64_t row) const { return named_.values + row * named_.count; }
  const int64_t* indices(int64_t row) const { return named_.indices + row * named_.count; }

  // Takes in what the teacher tells of the row; returns of how many classes.
  int64_t mark_named(int64_t row, const TopKScratch& scratch) const {
    int64_t told = 0;
    for (int64_t k = 0; k < named_.count; ++k) {
      const float value = values(row)[k];
      if (!names(value)) continue;
      scratch.places.add(indices(row)[k], told);
      scratch.teacher.data()[told++] = Loss::teacher_log(call_.params, value);
    }
    for (int64_t k = told; k < scratch.lanes; ++k) {
      scratch.teacher.data()[k] = scratch.logit.data()[k] = -INFINITY;
    }
    return told;
  }
  void clear_named(int64_t row, const TopKScratch& scratch) const {
    for (int64_t k = 0; k < named_.count; ++k) {
      if (names(values(row)[k])) scratch.places.clear(indices(row)[k]);
    }
  }

  Named sum_named(int64_t told, const TopKScratch& scratch) const {
    const float* const s = scratch.logit.data();
    const float* const t = scratch.teacher.data();
    Vec top_student(kLowest), top_teacher(kLowest);
    for (int64_t i = 0; i < told; i += kLanes) {
      top_student = max(load(s + i), top_student);
      top_teacher = max(load(t + i), top_teacher);
    }
    const Params params = call_.params;
    Named out = Loss::start_named(max_lanes(top_student), max_lanes(top_teacher));
    auto lanes = Loss::start_named(Vec(out.max_student), Vec(out.max_teacher));
    for (int64_t i = 0; i < told; i += kLanes) Loss::take(params, lanes, load(s + i), load(t + i));
    out.sum_student = sum_lanes(lanes.sum_student);
    out.sum_teacher = sum_lanes(lanes.sum_teacher);
    out.sum_hard = sum_lanes(lanes.sum_hard);
    return out;
  }

  float divergence(const Row& row, int64_t told, const TopKScratch& scratch) const {
    const Params params = call_.params;
    Vec sum(0.0f);
    for (int64_t i = 0; i < told; i += kLanes) {
      sum = sum + Loss::divergence(params, row, load(scratch.logit.data() + i),
                                   load(scratch.teacher.data() + i));
    }
    return sum_lanes(sum);
  }

  // The other classes, and the sum of all logits where label smoothing wants it. The logits of the
  // named ones are put aside.
  template <class T>
  Rest sum_rest(int64_t row, const T* logits, double& logit_sum, const TopKScratch& scratch) const {
    const Params params = call_.params;
    Rest total{};
    for (int64_t part = 0; part < scratch.chunks; ++part) {
      const int64_t begin = part * kChunk;
      const int64_t count = classes_ - begin < kChunk ? classes_ - begin : kChunk;
      if (smooths_) logit_sum += sum_of(logits + begin, count, scratch);
      const Chunk chunk = scratch.chunks == 1 ? read_only_chunk(row, logits, scratch)
                          : scratch.places.any(begin, count)
                              ? read_others(logits, begin, count, scratch)
                              : read_chunk<T>(logits, begin, count, scratch.chunk.data());
      scratch.part_max.data()[part] = chunk.maximum;
      float* const kept = scratch.exps.data() + begin;
      const int64_t plane = plane_stride(classes_);
      auto lanes = Loss::start_rest(Vec(chunk.maximum));
      const auto keep_exps = [&](int64_t i, const Exps& exps) {
        for (int k = 0; k < Loss::kExps; ++k) exps.value[k].store(kept + k * plane + i);
      };
      for_vectors(
          count,
          [&](int64_t i) {
            chunk.prefetch(i);
            keep_exps(i, Loss::update(params, lanes, load(chunk.logits + i)));
          },
          [&](int64_t i, int n) {
            keep_exps(i, Loss::update(params, lanes, load_first(chunk.logits + i, n, -INFINITY)));
          });
      const Rest rest{chunk.maximum, sum_lanes(lanes.sum), sum_lanes(lanes.sum_hard)};
      total = part == 0 ? rest : Loss::combine(params, total, rest);
    }
    return total;
  }

  // A row of one chunk. Most of its vectors may have a named class: no branch would foretell which.
  template <class T>
  Chunk read_only_chunk(int64_t row, const T* logits, const TopKScratch& scratch) const {
    float* const buffer = scratch.chunk.data();
    for_vectors(
        classes_, [&](int64_t i) { load(logits + i).store(buffer + i); },
        [&](int64_t i, int n) { load_first(logits + i, n, -INFINITY).store(buffer + i); });
    for (int64_t k = 0; k < named_.count; ++k) {
      if (!names(values(row)[k])) continue;
      float& logit = buffer[indices(row)[k]];
      scratch.logit.data()[scratch.places.place(indices(row)[k])] = logit;
      logit = -INFINITY;
    }
    Chunk chunk = read_chunk<float>(buffer, 0, classes_, buffer);
    chunk.next = reinterpret_cast<const char*>(logits + classes_);
    chunk.bytes_per_logit = sizeof(T);
    return chunk;
  }

  // A chunk that has named classes, one of several.
  template <class T>
  Chunk read_others(const T* logits, int64_t begin, int64_t count,
                    const TopKScratch& scratch) const {
    float* const buffer = scratch.chunk.data();
    float* const logit = scratch.logit.data();
    Vec maximum(kLowest);
    const T* const source = logits + begin;
    const auto take = [&](int64_t i, Vec x) {
      if (const uint32_t marks = scratch.places.marks(begin + i)) {
        scratch.places.for_marked(
            begin + i, [&](int lane, int64_t k) { logit[k] = to_float(source[i + lane]); });
        x = fill_lanes(marks, -INFINITY, x);
      }
      x.store(buffer + i);
      maximum = max(x, maximum);
    };
    for_vectors(
        count, [&](int64_t i) { take(i, load(source + i)); },
        [&](int64_t i, int n) { take(i, load_first(source + i, n, -INFINITY)); });
    return {buffer, max_lanes(maximum), reinterpret_cast<const char*>(source + count), sizeof(T)};
  }

  // Relative to the largest: nothing overflows, and logits far from 0 keep their digits.
  template <class T>
  static double sum_of(const T* logits, int64_t count, const TopKScratch& scratch) {
    const Chunk chunk = read_chunk<T>(logits, 0, count, scratch.chunk.data());
    const Vec shift(chunk.maximum);
    Vec sum(0.0f);
    for_vectors(
        count, [&](int64_t i) { sum = sum + (load(chunk.logits + i) - shift); },
        [&](int64_t i, int n) {
          sum = sum + keep(FirstLanes{n}, load_first(chunk.logits + i, n, 0.0f) - shift);
        });
    return static_cast<double>(sum_lanes(sum)) +
           static_cast<double>(count) * static_cast<double>(chunk.maximum);
  }

  // ---- gradient ----

  template <class V>
  typename Loss::template RestScale<V> part_scale(int64_t part, const Rest& rest,
                                                  const GradScale& scale,
                                                  const TopKScratch& scratch) const {
    return Loss::template for_part<V>(call_.params, scale,
                                      scratch.part_max.data()[part] - rest.max);
  }

  void differentiate_named(const Row& row, const GradScale& scale, int64_t told, int64_t label,
                           const TopKScratch& scratch) const {
    const Params params = call_.params;
    float* const grad = scratch.grad.data();
    for (int64_t i = 0; i < told; i += kLanes) {
      Loss::grad_of_named(params, row, scale, load(scratch.logit.data() + i),
                          load(scratch.teacher.data() + i))
          .store(grad + i);
    }
    if (Loss::kHard && scratch.places.has(label)) grad[scratch.places.place(label)] -= scale.label;
  }

  template <class T>
  void write_grad(T* out, const Rest& rest, const GradScale& scale,
                  const TopKScratch& scratch) const {
    const int64_t plane = plane_stride(classes_);
    for (int64_t part = 0; part < scratch.chunks; ++part) {
      const int64_t begin = part * kChunk;
      const int64_t count = classes_ - begin < kChunk ? classes_ - begin : kChunk;
      const auto lanes = part_scale<Vec>(part, rest, scale, scratch);
      const float* const kept = scratch.exps.data() + begin;
      write_chunk(out + begin, count, call_.streaming, [&](int64_t i) {
        Exps exps;
        for (int k = 0; k < Loss::kExps; ++k) exps.value[k] = load(kept + k * plane + i);
        const Vec others = Loss::grad_of_rest(lanes, exps);
        return call_.streaming ? with_named(begin + i, others, scratch) : others;
      });
    }
  }

  // The named classes' gradient within a vector: a store past the caches, then one of a class,
  // would fetch the line again.
  Vec with_named(int64_t c, Vec others, const TopKScratch& scratch) const {
    if (__builtin_expect(scratch.places.marks(c) == 0, 1)) return others;
    float lanes[kLanes];
    others.store(lanes);
    scratch.places.for_marked(c,
                              [&](int lane, int64_t k) { lanes[lane] = scratch.grad.data()[k]; });
    return Vec::load(lanes);
  }

  template <class T>
  void write_named(T* out, int64_t row, const TopKScratch& scratch) const {
    for (int64_t k = 0; k < named_.count; ++k) {
      const int64_t c = indices(row)[k];
      if (names(values(row)[k]))
        out[c] = from_float<T>(scratch.grad.data()[scratch.places.place(c)]);
    }
  }

  // The target's gradient is made again in float, so that a half type rounds it once.
  template <class T>
  void mark_label(T* out, int64_t y, const Rest& rest, const GradScale& scale,
                  const TopKScratch& scratch) const {
    typename Loss::template Exps<float> exps;
    for (int k = 0; k < Loss::kExps; ++k) {
      exps.value[k] = scratch.exps.data()[k * plane_stride(classes_) + y];
    }
    const auto lane = part_scale<float>(y / kChunk, rest, scale, scratch);
    out[y] = from_float<T>(Loss::grad_of_rest(lane, exps) - scale.label);
  }

  const SoftmaxCall<Loss>& call_;
  const NamedClasses& named_;
  const int64_t classes_;
  const bool smooths_;
};

}  // namespace fastkd::cpu
