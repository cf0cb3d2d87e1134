// SPDX-License-Identifier: Apache-2.0
// Rows whose classes are contiguous: lanes run along the classes.
//
// A row is worked through in chunks that fit the L1 cache: read (and widen) a chunk and find its
// maxima, then sum its exponentials and keep them; chunks merge by Loss::combine. The gradient is
// written from the kept exponentials, so the logits are read from memory once.
#pragma once

#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/softmax_call.h"
#include "cpu/vec_memory.h"

namespace fastkd::cpu {

constexpr int64_t kChunk = 1024;  // classes: 2 x 4 KB of logits and 2-3 x 4 KB of exponentials

// Distance between planes of exponentials: whole vectors, and never near a multiple of 4 KB, where
// stores to one plane would falsely alias loads from another (measured: 1.5x slower at C = 1024).
inline int64_t plane_stride(int64_t classes) { return (classes + 1023) / 1024 * 1024 + 336; }

// Calls full(i) for every whole vector of [0, count) and tail(i, n) for the rest.
template <class Full, class Tail>
inline void for_vectors(int64_t count, Full full, Tail tail) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) full(i);
  if (i < count) tail(i, static_cast<int>(count - i));
}

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

// A chunk of logits as floats, and their maximum.
struct Chunk {
  const float* logits;
  float maximum;
  const char* next;  // where the source goes on
  int64_t bytes_per_logit;

  // A chunk ahead, so that memory works while this chunk is summed.
  void prefetch(int64_t i) const { __builtin_prefetch(next + i * bytes_per_logit); }
};

// Reads `count` logits that start at element `first`, widens a half type into `buffer`.
using ReadChunk = Chunk (*)(const void* data, int64_t first, int64_t count, float* buffer);

template <class T>
inline Chunk read_chunk(const void* data, int64_t first, int64_t count, float* buffer) {
  constexpr bool kWiden = sizeof(T) != sizeof(float);
  const T* source = static_cast<const T*>(data) + first;
  Vec maximum(kLowest);
  for_vectors(
      count,
      [&](int64_t i) {
        const Vec x = load(source + i);
        if (kWiden) x.store(buffer + i);
        maximum = max(x, maximum);
      },
      [&](int64_t i, int n) {
        const Vec x = load_first(source + i, n, -INFINITY);
        if (kWiden) x.store(buffer + i);
        maximum = max(x, maximum);
      });
  const float* logits = kWiden ? buffer : reinterpret_cast<const float*>(source);
  return {logits, max_lanes(maximum), reinterpret_cast<const char*>(source + count), sizeof(T)};
}

// Takes one class out of a chunk of `count`, which moves into `buffer` if it is not there.
inline void hide(Chunk& chunk, int64_t c, int64_t count, float* buffer) {
  if (chunk.logits != buffer) memcpy(buffer, chunk.logits, static_cast<size_t>(count) * 4);
  buffer[c] = -INFINITY;
  const Chunk without = read_chunk<float>(buffer, 0, count, buffer);
  chunk.logits = buffer;
  chunk.maximum = without.maximum;
}

inline ReadChunk chunk_reader(Dtype dtype) {
  ReadChunk reader = nullptr;
  visit(dtype, [&](auto type) { reader = read_chunk<typename decltype(type)::type>; });
  return reader;
}

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
    const LogitArgs& args = call_.args;
    constexpr int64_t kElementsPerTask = 65536;  // about 35 us: waking a thread costs up to 20
    const int64_t grain = kElementsPerTask / (args.student.classes + 32) + 1;
    auto body = [&](int64_t begin, int64_t end) { rows(begin, end); };
    if (!parallel_for(args.rows(), grain, body)) return {Status::kThreadPoolFailed, -1};
    if (out_of_memory_) return {Status::kOutOfMemory, -1};
    return {};
  }

 private:
  void rows(int64_t begin, int64_t end) {
    const RowScratch scratch(Loss::kExps, shared_);
    if (!scratch.ok()) {
      __atomic_store_n(&out_of_memory_, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t row = begin; row < end; ++row) one_row(row, scratch);
    if (call_.wants_grad()) fence_streaming();
  }

  int64_t offset(const LogitView& view, int64_t row) const {
    if (call_.args.outer == 1) return row * view.stride_inner;
    return row / call_.args.inner * view.stride_outer + row % call_.args.inner * view.stride_inner;
  }

  void one_row(int64_t row, const RowScratch& scratch) {
    const LogitArgs& args = call_.args;
    const float weight = call_.weights(row);
    if (weight == 0.0f) {
      call_.row_loss[row] = 0.0f;
      if (call_.wants_grad()) zero_grad(row);
      return;
    }
    const int64_t student_row = offset(args.student, row);
    const int64_t teacher_row = offset(args.teacher, row);
    const int64_t label = Loss::kHasLabel ? args.target[row] : -1;
    Labels<float> labels{};
    if constexpr (Loss::kHasLabel) labels.student = logit(args.student, student_row + label);
    if constexpr (Loss::kHidesLabel) labels.teacher = logit(args.teacher, teacher_row + label);
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
      T* out = static_cast<T*>(args.grad.data) + offset(args.grad, row);
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

  static float logit(const LogitView& view, int64_t element) {
    float logit = 0.0f;
    visit(view.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      logit = to_float(static_cast<const T*>(view.data)[element]);
    });
    return logit;
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
    const bool streaming =
        call_.streaming && reinterpret_cast<uintptr_t>(out) % (sizeof(T) * kLanes) == 0;
    for (int64_t begin = 0, part = 0; begin < shared_; begin += kChunk, ++part) {
      const int64_t count = shared_ - begin < kChunk ? shared_ - begin : kChunk;
      const VecScale lanes = Loss::template broadcast<Vec>(part_scale(part, state, scale, scratch));
      const float* kept = scratch.exps.data() + begin;
      const auto grad_at = [&](int64_t i) {
        typename Loss::template Exps<Vec> exps;
        for (int k = 0; k < Loss::kExps; ++k) exps.value[k] = load(kept + k * plane + i);
        return Loss::grad(lanes, exps);
      };
      const auto tail = [&](int64_t i, int n) { store_first(out + begin + i, grad_at(i), n); };
      if (streaming) {
        for_vectors(count, [&](int64_t i) { store_streaming(out + begin + i, grad_at(i)); }, tail);
      } else {
        for_vectors(count, [&](int64_t i) { store(out + begin + i, grad_at(i)); }, tail);
      }
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

  void zero_grad(int64_t row) {
    const LogitView& grad = call_.args.grad;
    const int64_t size = element_size(grad.dtype);
    memset(static_cast<char*>(grad.data) + offset(grad, row) * size, 0,
           static_cast<size_t>(grad.classes * size));
  }

  const SoftmaxCall<Loss>& call_;
  const int64_t shared_;
  const ReadChunk read_student_, read_teacher_;
  bool out_of_memory_ = false;
};

}  // namespace fastkd::cpu
