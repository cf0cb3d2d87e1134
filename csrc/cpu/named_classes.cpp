// SPDX-License-Identifier: Apache-2.0
#include "cpu/named_classes.h"

#include <string.h>

#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace fastkd::cpu {

namespace {

// A set of classes that forgets what it was told.
class Marks {
 public:
  explicit Marks(int64_t classes) : words_((classes + 63) / 64) {
    if (ok()) memset(words_.data(), 0, static_cast<size_t>((classes + 63) / 64) * 8);
  }
  bool ok() const { return words_.data() != nullptr; }

  // False: it was there.
  bool add(int64_t c) const {
    uint64_t& word = words_.data()[c / 64];
    const uint64_t bit = uint64_t{1} << (c % 64);
    const bool fresh = (word & bit) == 0;
    word |= bit;
    return fresh;
  }
  void remove(int64_t c) const { words_.data()[c / 64] = 0; }

 private:
  Scratch<uint64_t> words_;
};

bool row_is_good(const float* values, const int64_t* indices, int64_t count, int64_t classes,
                 float most, const Marks& marks) {
  bool good = true;
  int64_t seen = 0;
  for (; seen < count && good; ++seen) {
    if (!names(values[seen])) continue;
    const int64_t c = indices[seen];
    good = !(values[seen] > most) && c >= 0 && c < classes && marks.add(c);
  }
  for (int64_t k = 0; k < seen; ++k) {
    const int64_t c = indices[k];
    if (names(values[k]) && c >= 0 && c < classes) marks.remove(c);
  }
  return good;
}

}  // namespace

Outcome check_named(const LogitArgs& args, const NamedClasses& named, const RowWeights& weights,
                    float most) {
  const int64_t rows = args.rows(), classes = args.student.classes;
  int64_t first_bad = rows;
  bool out_of_memory = false;
  auto body = [&](int64_t begin, int64_t end) {
    const Marks marks(classes);
    if (!marks.ok()) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * named.count;
      if (weights(row) == 0.0f ||
          row_is_good(named.values + at, named.indices + at, named.count, classes, most, marks)) {
        continue;
      }
      int64_t seen = __atomic_load_n(&first_bad, __ATOMIC_RELAXED);
      while (row < seen && !__atomic_compare_exchange_n(&first_bad, &seen, row, false,
                                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      }
      return;
    }
  };
  if (!parallel_for(rows, 65536 / (named.count + 32) + 1, body)) {
    return {Status::kThreadPoolFailed, -1};
  }
  if (out_of_memory) return {Status::kOutOfMemory, -1};
  if (first_bad < rows) return {Status::kNamedClasses, first_bad};
  return {};
}

}  // namespace fastkd::cpu
