// SPDX-License-Identifier: Apache-2.0
// A tile of the column driver: neighbouring rows (pixels) by all classes, as dense float planes.
#pragma once

#include "core/logit_args.h"
#include "cpu/vec_memory.h"

namespace fastkd::cpu {

// A run of pixels of one outer index.
struct ColumnTile {
  int64_t outer, first_pixel;
  int pixels;       // the last tile of a map may be short
  int64_t stride;   // from class to class in a plane: the pixels of a full tile
  float* plane[4];  // [classes, stride] each: student, teacher, and what else is kept of a class
};

// Sixteen pixels of a tile, one class a step: fetched while the tile before is summed, for the
// classes are too many streams for a hardware prefetcher.
class ClassPrefetch {
 public:
  ClassPrefetch(const ColumnTile& tile, int v, const LogitArgs& args)
      : student_(address(args.student, tile, v)),
        teacher_(address(args.teacher, tile, v)),
        student_step_(args.student.stride_class * element_size(args.student.dtype)),
        teacher_step_(args.teacher.stride_class * element_size(args.teacher.dtype)) {}

  void next_class() {
    __builtin_prefetch(student_);
    __builtin_prefetch(teacher_);
    student_ += student_step_;
    teacher_ += teacher_step_;
  }

 private:
  static const char* address(const LogitView& view, const ColumnTile& tile, int v) {
    const int64_t pixel = tile.first_pixel + v * kLanes;
    const int64_t element = tile.outer * view.stride_outer + pixel * view.stride_inner;
    return static_cast<const char*>(view.data) + element * element_size(view.dtype);
  }

  const char* student_;
  const char* teacher_;
  int64_t student_step_, teacher_step_;  // bytes
};

// Rows apart in memory (their classes together): row by row into the plane.
template <class T, class Maximum>
inline void transpose_into_plane(const T* source, const LogitView& view, const ColumnTile& tile,
                                 float* plane, int64_t begin, int64_t end, Maximum maximum) {
  const int filled = (tile.pixels + kLanes - 1) / kLanes * kLanes;
  for (int p = 0; p < filled; ++p) {
    for (int64_t c = begin; c < end; ++c) {
      const float x =
          p < tile.pixels ? to_float(source[p * view.stride_inner + c * view.stride_class]) : 0.0f;
      plane[c * tile.stride + p] = x;
    }
  }
  for (int64_t c = begin; c < end; ++c) {
    for (int v = 0; v * kLanes < filled; ++v)
      maximum(v, load(plane + c * tile.stride + v * kLanes));
  }
}

// Classes [begin, end) of the tile into a plane; maximum(v, x) sees every vector. Lanes beyond the
// tile's pixels become 0.
template <class Maximum>
inline void read_plane(const LogitView& view, const ColumnTile& tile, float* plane, int64_t begin,
                       int64_t end, Maximum maximum) {
  visit(view.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* source = view.template at<const T>(tile.outer, tile.first_pixel);
    if (view.stride_inner != 1) {
      transpose_into_plane(source, view, tile, plane, begin, end, maximum);
      return;
    }
    for (int64_t c = begin; c < end; ++c) {
      const T* pixels_of_class = source + c * view.stride_class;
      float* out = plane + c * tile.stride;
      int v = 0;
      for (; (v + 1) * kLanes <= tile.pixels; ++v) {
        const Vec x = load(pixels_of_class + v * kLanes);
        x.store(out + v * kLanes);
        maximum(v, x);
      }
      if (v * kLanes < tile.pixels) {
        const Vec x = load_first(pixels_of_class + v * kLanes, tile.pixels - v * kLanes, 0.0f);
        x.store(out + v * kLanes);
        maximum(v, x);
      }
    }
  });
}

}  // namespace fastkd::cpu
