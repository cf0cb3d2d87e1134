// SPDX-License-Identifier: Apache-2.0
// Where in a row of logits the classes stand that its teacher names.
#pragma once

#include <string.h>

#include "cpu/memory.h"
#include "cpu/vec.h"

namespace fastkd::cpu {

// The classes that a row's teacher names: which, and the place of each among them.
class NamedPlaces {
 public:
  explicit NamedPlaces(int64_t classes) : marks_((classes + kLanes - 1) / kLanes), place_(classes) {
    if (!ok()) return;
    memset(marks_.data(), 0, static_cast<size_t>((classes + kLanes - 1) / kLanes) * 2);
  }

  bool ok() const { return marks_.data() != nullptr && place_.data() != nullptr; }

  void add(int64_t c, int64_t place) const {
    marks_.data()[c / kLanes] |= static_cast<uint16_t>(1u << (c % kLanes));
    place_.data()[c] = static_cast<int32_t>(place);
  }
  void clear(int64_t c) const { marks_.data()[c / kLanes] = 0; }

  bool has(int64_t c) const { return (marks_.data()[c / kLanes] >> (c % kLanes) & 1u) != 0; }
  int64_t place(int64_t c) const { return place_.data()[c]; }

  // Whether classes [begin, begin + count) have one; begin is that of a chunk.
  bool any(int64_t begin, int64_t count) const {
    const uint16_t* const marks = marks_.data() + begin / kLanes;
    uint32_t all = 0;
    for (int64_t i = 0; i < (count + kLanes - 1) / kLanes; ++i) all |= marks[i];
    return all != 0;
  }

  // A bit for each named class of a vector that begins at class c.
  uint32_t marks(int64_t c) const { return marks_.data()[c / kLanes]; }

  // visit(lane, place) of these.
  template <class Visit>
  void for_marked(int64_t c, Visit visit) const {
    for (uint32_t marks = marks_.data()[c / kLanes]; marks != 0; marks &= marks - 1) {
      const int lane = __builtin_ctz(marks);
      visit(lane, place(c + lane));
    }
  }

 private:
  Scratch<uint16_t> marks_;  // a vector of classes each
  Scratch<int32_t> place_;   // of the marked classes; else anything
};

}  // namespace fastkd::cpu
