// SPDX-License-Identifier: Apache-2.0
#include "cpu/pair_table.h"

#include <math.h>

namespace fastkd::cpu {

namespace {

inline Vec load_lanes(const float* p) { return Vec::load(p); }
inline DoubleVec load_lanes(const double* p) { return DoubleVec::load(p); }

// A run of a panel in the type of the sums: floats stay where they are.
inline const float* in_type(const float* panel, int64_t, float*) { return panel; }
inline const double* in_type(const float* panel, int64_t count, double* out) {
  for (int64_t i = 0; i < count * kLanes; i += kLanes) DoubleVec::load(panel + i).store(out + i);
  return out;
}

struct SquaredDifference {
  template <class V>
  static V add(V sum, V x, V y) {
    const V difference = x - y;
    return fma(difference, difference, sum);
  }
};

struct Product {
  template <class V>
  static V add(V sum, V x, V y) {
    return fma(x, y, sum);
  }
};

// sums[r][lane] += what row r of `left` and row `lane` of `right` make, [count][16] both.
template <class Relation, class T>
void add_tile(const T* left, const T* right, int64_t count, T (*sums)[kLanes]) {
  using V = typename LanesOf<T>::V;
  constexpr int kRows = LanesOf<T>::kRows;
  for (int first = 0; first < kLanes; first += kRows) {
    V run[kRows];
    for (V& sum : run) sum = V(static_cast<T>(0));
    for (int64_t f = 0; f < count; ++f) {
      const V x = load_lanes(right + f * kLanes);
      for (int r = 0; r < kRows; ++r) {
        run[r] = Relation::add(run[r], x, V(left[f * kLanes + first + r]));
      }
    }
    for (int r = 0; r < kRows; ++r) (load_lanes(sums[first + r]) + run[r]).store(sums[first + r]);
  }
}

// Which pair of panels a task is: (0, 0), (0, 1), ... (0, n - 1), (1, 1), ...
struct PanelPair {
  int64_t left, right;

  PanelPair(int64_t task, int64_t count) {
    const double n = static_cast<double>(2 * count + 1);
    left = static_cast<int64_t>((n - ::sqrt(n * n - 8.0 * static_cast<double>(task))) / 2.0);
    while (before(left, count) > task) --left;  // where the root was rounded
    while (before(left + 1, count) <= task) ++left;
    right = left + task - before(left, count);
  }
  void next(int64_t count) {
    if (++right == count) right = ++left;
  }
  static int64_t before(int64_t left, int64_t count) { return left * (2 * count - left + 1) / 2; }
};

template <class T>
void store_tile(const Panels& x, const PairTable<T>& table, const PanelPair& pair,
                T (*sums)[kLanes]) {
  const int64_t left = pair.left * kLanes, right = pair.right * kLanes;
  for (int r = 0; r < kLanes; ++r) {
    for (int c = 0; c < kLanes; ++c) {
      if (left + r >= x.rows || right + c >= x.rows) sums[r][c] = static_cast<T>(0);
    }
  }
  for (int r = 0; r < kLanes; ++r) memcpy(table.row(left + r) + right, sums[r], sizeof(sums[r]));
  if (pair.left == pair.right) return;
  for (int c = 0; c < kLanes; ++c) {
    T* const out = table.row(right + c) + left;
    for (int r = 0; r < kLanes; ++r) out[r] = sums[r][c];
  }
}

}  // namespace

bool pack_panels(const Embeddings& embeddings, const Panels& panels) {
  const int64_t features = embeddings.features;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      float* const out = panels.panel(p);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t row = p * kLanes + lane;
        const float* const in = embeddings.data + row * features;
        for (int64_t f = 0; f < features; ++f) {
          out[f * kLanes + lane] = row < panels.rows ? in[f] : 0.0f;
        }
      }
    }
  };
  return parallel_by_cost(panels.count(), features * kLanes, body);
}

namespace {

template <class Relation, class T>
bool fill_table(const Panels& x, const PairTable<T>& table) {
  // Of n numbers that are added up in runs of r, a float loses what r + n / r additions lose.
  constexpr int64_t kLength = sizeof(T) == sizeof(float) ? 32 : kRun;
  const int64_t count = x.count();
  auto body = [&](int64_t begin, int64_t end) {
    PanelPair pair(begin, count);
    T left[kLength * kLanes], right[kLength * kLanes];
    for (int64_t task = begin; task < end; ++task, pair.next(count)) {
      T sums[kLanes][kLanes] = {};
      for (int64_t f = 0; f < x.features; f += kLength) {
        const int64_t run = x.features - f < kLength ? x.features - f : kLength;
        add_tile<Relation>(in_type(x.panel(pair.left) + f * kLanes, run, left),
                           in_type(x.panel(pair.right) + f * kLanes, run, right), run, sums);
      }
      store_tile(x, table, pair, sums);
    }
  };
  return parallel_by_cost(count * (count + 1) / 2, x.features * kLanes, body);
}

}  // namespace

template <class T>
bool squared_distances(const Panels& x, const PairTable<T>& table) {
  return fill_table<SquaredDifference>(x, table);
}

template bool squared_distances<float>(const Panels&, const PairTable<float>&);
template bool squared_distances<double>(const Panels&, const PairTable<double>&);

template <class T>
bool inner_products(const Panels& x, const PairTable<T>& table) {
  return fill_table<Product>(x, table);
}

template bool inner_products<float>(const Panels&, const PairTable<float>&);
template bool inner_products<double>(const Panels&, const PairTable<double>&);

double largest_square(const Panels& x, double* of_rows, bool* ok) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const float* const panel = x.panel(p);
      Vec square(0.0f);
      for (int64_t f = 0; f < x.features; ++f) {
        const Vec value = Vec::load(panel + f * kLanes);
        square = fma(value, value, square);
      }
      of_rows[p] = static_cast<double>(max_lanes(square));
    }
  };
  *ok &= parallel_by_cost(x.count(), 4 * x.features, body);
  double largest = 0.0;
  for (int64_t p = 0; p < x.count(); ++p) largest = of_rows[p] > largest ? of_rows[p] : largest;
  return largest;
}

double offset_share(const Panels& x) {
  constexpr int64_t kMaxParts = 64;
  const int64_t parts = x.features < kMaxParts ? x.features : kMaxParts;
  double of_mean[kMaxParts], squares[kMaxParts];
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      of_mean[part] = 0.0;
      DoubleVec square(0.0);
      const int64_t last = x.features * (part + 1) / parts;
      for (int64_t f = x.features * part / parts; f < last; ++f) {
        DoubleVec sum(0.0);
        for (int64_t p = 0; p < x.count(); ++p) {
          const DoubleVec value = DoubleVec::load(x.panel(p) + f * kLanes);
          sum = sum + value;
          square = fma(value, value, square);
        }
        const double total = sum_lanes(sum);
        of_mean[part] += total * total;
      }
      squares[part] = sum_lanes(square);
    }
  };
  // A failing pool fails the next call, too; NaN here only means the careful way.
  if (!parallel_by_cost(parts, x.features / parts * x.count() * 8, body)) return NAN;
  double mean = 0.0, square = 0.0;
  for (int64_t part = 0; part < parts; ++part) {
    mean += of_mean[part];
    square += squares[part];
  }
  return square > 0.0 ? mean / (square * static_cast<double>(x.rows)) : 0.0;
}

}  // namespace fastkd::cpu
