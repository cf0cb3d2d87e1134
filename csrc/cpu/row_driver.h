// SPDX-License-Identifier: Apache-2.0
// Rows whose classes are contiguous: lanes run along the classes.
//
// A row is worked through in chunks that fit the L1 cache: read (and widen) a chunk and find its
// maxima, then sum its exponentials and keep them; chunks merge by Loss::combine. The gradient is
// written from the kept exponentials, so the logits are read from memory once.
#pragma once

#include "cpu/row_chunks.h"
#include "cpu/softmax_call.h"

namespace fastkd::cpu {

// Per-thread scratch of the row driver.
struct RowScratch {
  Scratch<float> student, teacher;  // [kChunk] widened logits
  Scratch<float> exps;              // [kExps, plane_stride]
  Scratch<float> part_max;          // [chunks, 2] maxima of student and teacher

  RowScratch(int exps_per_class, int64_t classes)
      : student(kChunk),
        teacher(kChunk),
        exps(exps_per_class * plane_stride(classes)),
        part_max(2 * (classes / kChunk + 1)) {}

  bool ok() const {
    return student.data() != nullptr && teacher.data() != nullptr && exps.data() != nullptr &&
           part_max.data() != nullptr;
  }
};

template <class Loss>
class RowDriver {
  using Params = typename Loss::Params;
  using State = typename Loss::template State<float>;
  using HardState = typename Loss::template HardState<float>;
  using GradScale = typename Loss::template GradScale<float>;
  using VecState = typename Loss::template State<Vec>;
  using VecScale = typename Loss::template GradScale<Vec>;

 public:
  explicit RowDriver(const SoftmaxCall<Loss>& call)
      : call_(call),
        shared_(call.shared_classes()),
        read_student_(chunk_reader(call.args.student.dtype)),
        read_teacher_(chunk_reader(call.args.teacher.dtype)) {}

  Outcome run() {
    return for_rows(
        call_, call_.args.student.classes, [&] { return RowScratch(Loss::kExps, shared_); },
        [&](int64_t row, const RowScratch& scratch) { one_row(row, scratch); });
  }

 private:
  void one_row(int64_t row, const RowScratch& scratch) {
    const LogitArgs& args = call_.args;
    const float weight = call_.weights(row);
    if (weight == 0.0f) {
      call_.row_loss[row] = 0.0f;
      if (call_.wants_grad()) zero_gradient(args, row);
      return;
    }
    const int64_t student_row = row_offset(args, args.student, row);
    const int64_t teacher_row = row_offset(args, args.teacher, row);
    const int64_t label = Loss::kHasLabel ? args.target[row] : -1;
    Labels<float> labels{};
    if constexpr (Loss::kHasLabel) labels.student = logit_at(args.student, student_row + label);
    if constexpr (Loss::kHidesLabel) labels.teacher = logit_at(args.teacher, teacher_row + label);
    State state = statistics(student_row, teacher_row, label, scratch);
    if constexpr (Loss::kRefines) state = Loss::with_refined(state, refine(state, scratch));
    HardState hard = Loss::hard_state(state);
    if constexpr (Loss::kHard) {
      if (args.student.classes > shared_) {
        hard = Loss::combine_hard(hard, tail_statistics(student_row, scratch),
                                  static_cast<float>(shared_),
                                  static_cast<float>(args.student.classes - shared_));
      }
    }
    const float classes = static_cast<float>(args.student.classes);
    call_.row_loss[row] = weight * Loss::finish(call_.params, state, hard, labels, classes);
    if (!call_.wants_grad()) return;
    const GradScale scale =
        Loss::grad_scale(call_.params, state, hard, labels, weight * call_.grad_factor, classes);
    visit(args.grad.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      T* out = static_cast<T*>(args.grad.data) + row_offset(args, args.grad, row);
      write_grad(out, state, scale, scratch);
      if (args.student.classes > shared_) write_tail_grad(out, student_row, hard, scale, scratch);
      if constexpr (Loss::kHasLabel) {
        mark_label(out, label, labels.student, state, hard, scale, scratch);
      }
    });
  }

  // ---- forward ----

  State statistics(int64_t student_row, int64_t teacher_row, int64_t label,
                   const RowScratch& scratch) {
    State total{};
    for (int64_t begin = 0, part = 0; begin < shared_; begin += kChunk, ++part) {
      const int64_t count = shared_ - begin < kChunk ? shared_ - begin : kChunk;
      Chunk student = read_student_(call_.args.student.data, student_row + begin, count,
                                    scratch.student.data());
      Chunk teacher = read_teacher_(call_.args.teacher.data, teacher_row + begin, count,
                                    scratch.teacher.data());
      if (Loss::kHidesLabel && label >= begin && label < begin + count) {
        hide(student, label - begin, count, scratch.student.data());
        hide(teacher, label - begin, count, scratch.teacher.data());
      }
      scratch.part_max.data()[2 * part] = student.maximum;
      scratch.part_max.data()[2 * part + 1] = teacher.maximum;
      const State state = sum_chunk(student, teacher, begin, count, scratch);
      total = part == 0 ? state
                        : Loss::combine(call_.params, total, state, static_cast<float>(begin),
                                        static_cast<float>(count));
    }
    return total;
  }

  State sum_chunk(const Chunk& student, const Chunk& teacher, int64_t begin, int64_t count,
                  const RowScratch& scratch) {
    float* kept = scratch.exps.data() + begin;
    const int64_t plane = plane_stride(shared_);
    const float* const s = student.logits;
    const float* const t = teacher.logits;
    const Params params = call_.params;  // a local copy stays in registers
    VecState state = Loss::start(Vec(student.maximum), Vec(teacher.maximum));
    const auto keep_exps = [&](int64_t i, const typename Loss::template Exps<Vec>& exps) {
      for (int k = 0; k < Loss::kExps; ++k) exps.value[k].store(kept + k * plane + i);
    };
    for_vectors(
        count,
        [&](int64_t i) {
          student.prefetch(i);
          teacher.prefetch(i);
          keep_exps(i, Loss::update(params, state, load(s + i), load(t + i)));
        },
        [&](int64_t i, int n) {
          keep_exps(i, Loss::update(params, state, load_first(s + i, n, -INFINITY),
                                    load_first(t + i, n, -INFINITY)));
        });
    if (Loss::wants_logits(params)) {
      for_vectors(
          count, [&](int64_t i) { Loss::add_logit(state, load(s + i), AllLanes{}); },
          [&](int64_t i, int n) {
            Loss::add_logit(state, load_first(s + i, n, -INFINITY), FirstLanes{n});
          });
    }
    return Loss::across(params, state, student.maximum, teacher.maximum, sum_lanes);
  }

  // Sums that need the row's own, over the kept exponentials, which become what the gradient needs.
  State refine(const State& row, const RowScratch& scratch) const {
    const int64_t plane = plane_stride(shared_);
    const Params params = call_.params;
    const auto whole = Loss::normalizer(row);
    State total = Loss::start(row.max_student, row.max_teacher);
    for (int64_t begin = 0, part = 0; begin < shared_; begin += kChunk, ++part) {
      const int64_t count = shared_ - begin < kChunk ? shared_ - begin : kChunk;
      const auto of_part =
          shared_ <= kChunk
              ? whole
              : Loss::for_part(params, whole, scratch.part_max.data()[2 * part] - row.max_student,
                               scratch.part_max.data()[2 * part + 1] - row.max_teacher);
      const auto normalizer = Loss::template broadcast<Vec>(of_part);
      float* const kept = scratch.exps.data() + begin;
      VecState state = Loss::start(Vec(row.max_student), Vec(row.max_teacher));
      for (int64_t i = 0; i < count; i += kLanes) {  // beyond the last class they are 0
        typename Loss::template Exps<Vec> exps;
        for (int k = 0; k < Loss::kExps; ++k) exps.value[k] = load(kept + k * plane + i);
        Loss::refine(params, state, normalizer, exps);
        exps.value[1].store(kept + plane + i);
      }
      Loss::add(total, Loss::across(params, state, row.max_student, row.max_teacher, sum_lanes));
    }
    return total;
  }

  // The student's classes beyond the teacher's.
  HardState tail_statistics(int64_t student_row, const RowScratch& scratch) {
    HardState total{};
    const int64_t classes = call_.args.student.classes;
    for (int64_t begin = shared_; begin < classes; begin += kChunk) {
      const int64_t count = classes - begin < kChunk ? classes - begin : kChunk;
      const Chunk student = read_student_(call_.args.student.data, student_row + begin, count,
                                          scratch.student.data());
      auto lanes = Loss::start_hard(Vec(student.maximum));
      for_vectors(
          count, [&](int64_t i) { Loss::update_hard(lanes, load(student.logits + i), AllLanes{}); },
          [&](int64_t i, int n) {
            Loss::update_hard(lanes, load_first(student.logits + i, n, -INFINITY), FirstLanes{n});
          });
      const HardState state{student.maximum, sum_lanes(lanes.sum), sum_lanes(lanes.sum_logit)};
      total = begin == shared_
                  ? state
                  : Loss::combine_hard(total, state, static_cast<float>(begin - shared_),
                                       static_cast<float>(count));
    }
    return total;
  }

  // ---- gradient ----

  GradScale part_scale(int64_t part, const State& state, const GradScale& scale,
                       const RowScratch& scratch) const {
    if (shared_ <= kChunk) return scale;
    return Loss::for_part(call_.params, scale,
                          scratch.part_max.data()[2 * part] - state.max_student,
                          scratch.part_max.data()[2 * part + 1] - state.max_teacher);
  }

  template <class T>
  void write_grad(T* out, const State& state, const GradScale& scale, const RowScratch& scratch) {
    const int64_t plane = plane_stride(shared_);
    for (int64_t begin = 0, part = 0; begin < shared_; begin += kChunk, ++part) {
      const int64_t count = shared_ - begin < kChunk ? shared_ - begin : kChunk;
      const VecScale lanes = Loss::template broadcast<Vec>(part_scale(part, state, scale, scratch));
      const float* kept = scratch.exps.data() + begin;
      write_chunk(out + begin, count, call_.streaming, [&](int64_t i) {
        typename Loss::template Exps<Vec> exps;
        for (int k = 0; k < Loss::kExps; ++k) exps.value[k] = load(kept + k * plane + i);
        return Loss::grad(lanes, exps);
      });
    }
  }

  template <class T>
  void write_tail_grad(T* out, int64_t student_row, const HardState& hard, const GradScale& scale,
                       const RowScratch& scratch) {
    const int64_t classes = call_.args.student.classes;
    if constexpr (!Loss::kHard) {
      memset(out + shared_, 0, static_cast<size_t>(classes - shared_) * sizeof(T));
      return;
    }
    const VecScale lanes = Loss::template broadcast<Vec>(scale);
    const Vec maximum(hard.max);
    for (int64_t begin = shared_; begin < classes; begin += kChunk) {
      const int64_t count = classes - begin < kChunk ? classes - begin : kChunk;
      const Chunk student = read_student_(call_.args.student.data, student_row + begin, count,
                                          scratch.student.data());
      for_vectors(
          count,
          [&](int64_t i) {
            const Vec shifted = load(student.logits + i) - maximum;
            store(out + begin + i, Loss::grad_hard_only(lanes, shifted));
          },
          [&](int64_t i, int n) {
            const Vec shifted = load_first(student.logits + i, n, -INFINITY) - maximum;
            store_first(out + begin + i, Loss::grad_hard_only(lanes, shifted), n);
          });
    }
  }

  // The target's gradient is made again in float, so that a half type rounds it once.
  template <class T>
  void mark_label(T* out, int64_t y, float label_logit, const State& state, const HardState& hard,
                  const GradScale& scale, const RowScratch& scratch) {
    float grad = 0.0f;
    if (y < shared_) {
      typename Loss::template Exps<float> exps;
      for (int k = 0; k < Loss::kExps; ++k) {
        exps.value[k] = scratch.exps.data()[k * plane_stride(shared_) + y];
      }
      grad = Loss::grad(part_scale(y / kChunk, state, scale, scratch), exps);
    } else {
      grad = Loss::grad_hard_only(scale, label_logit - hard.max);
    }
    out[y] = from_float<T>(grad - scale.label);
  }

  const SoftmaxCall<Loss>& call_;
  const int64_t shared_;
  const ReadChunk read_student_, read_teacher_;
};

}  // namespace fastkd::cpu
