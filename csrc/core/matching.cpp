#include "core/matching.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "core/clones.h"
#include "core/matching_lanes.h"
#include "core/parallel.h"

namespace glass_fast {

namespace {

// Shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987) for a dense problem with
// rows <= columns, in double. Reduced costs `cost - row_price - column_price` stay >= 0, and 0 on matched pairs,
// so a full matching is optimal. One object per thread: its buffers are reused from problem to problem.
class Assignment {
 public:
  void resize(int64_t rows, int64_t columns) {
    rows_ = rows;
    columns_ = columns;
    stride_ = (columns + 3) / 4 * 4;  // whole vectors; the padding costs infinity and is never taken
    cost_.assign(static_cast<size_t>(rows * stride_), kInfinity);
    row_price_.resize(static_cast<size_t>(rows));
    column_price_.assign(static_cast<size_t>(stride_), 0.0);
    row_of_.assign(static_cast<size_t>(stride_), -1);
    previous_.resize(static_cast<size_t>(stride_));
    distance_.resize(static_cast<size_t>(stride_));
    closed_.resize(static_cast<size_t>(stride_));
    settled_.reserve(static_cast<size_t>(rows) + 1);
    waiting_.reserve(static_cast<size_t>(rows));
  }

  double* cost_of_row(int64_t row) { return cost_.data() + row * stride_; }
  int64_t row_of_column(int64_t column) const { return row_of_[static_cast<size_t>(column)]; }

  void solve() {
    waiting_.clear();
    for (int64_t row = 0; row < rows_; ++row) {
      // The cheapest column with column prices 0: a free one is matched at once.
      const double* line = cost_of_row(row);
      const int64_t column = lowest(line);
      row_price_[row] = line[column];
      if (row_of_[column] < 0)
        row_of_[column] = row;
      else
        waiting_.push_back(row);
    }
    for (const int64_t row : waiting_) insert(row);
  }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  struct Settled {
    int64_t column;
    double distance;
  };

  // Index of the least value of a row of `stride_` doubles, the lowest of equals.
  int64_t lowest(const double* values) const {
    int64_t best = 0;
    for (int64_t c = 1; c < columns_; ++c)
      if (values[c] < values[best]) best = c;
    return best;
  }

  // Adds one row to the matching along the path of least reduced cost (Dijkstra), then restores the prices.
  void insert(int64_t start) {
    std::fill(distance_.begin(), distance_.end(), kInfinity);
    std::fill(closed_.begin(), closed_.end(), 0.0);
    settled_.clear();
    double least = 0.0;
    int64_t row = start;
    int64_t column = 0;
    for (;;) {
      const double* line = cost_of_row(row);
      const double base = least - row_price_[row];
      for (int64_t c = 0; c < stride_; ++c) {
        // closed_ is infinite for settled columns: no branch, and infinity < infinity is false.
        const double through = line[c] - column_price_[c] + base + closed_[c];
        const bool shorter = through < distance_[c];
        distance_[c] = shorter ? through : distance_[c];
        previous_[c] = shorter ? row : previous_[c];
      }
      column = lowest(distance_.data());
      least = distance_[column];
      row = row_of_[column];
      if (row < 0) break;
      settled_.push_back({column, least});
      distance_[column] = kInfinity;
      closed_[column] = kInfinity;
    }
    row_price_[start] += least;
    for (const Settled& s : settled_) {
      row_price_[row_of_[s.column]] += least - s.distance;
      column_price_[s.column] -= least - s.distance;
    }
    // Along the path every column takes over the row that reached it.
    for (int64_t taker = previous_[column];; taker = previous_[column]) {
      row_of_[column] = taker;
      if (taker == start) break;
      column = column_of(taker, column);
    }
  }

  // Column that `row` held before it moved to `moved_to`: among the settled ones.
  int64_t column_of(int64_t row, int64_t moved_to) const {
    for (const Settled& s : settled_)
      if (s.column != moved_to && row_of_[s.column] == row) return s.column;
    return moved_to;
  }

  int64_t rows_ = 0;
  int64_t columns_ = 0;
  int64_t stride_ = 0;
  std::vector<double> cost_;
  std::vector<double> row_price_;
  std::vector<double> column_price_;
  std::vector<double> distance_;
  std::vector<double> closed_;
  std::vector<int64_t> row_of_;
  std::vector<int64_t> previous_;
  std::vector<Settled> settled_;
  std::vector<int64_t> waiting_;
};

// Prices are sums of at most rows + columns costs, so below this no price can overflow.
constexpr double kLargest = 1e300;

// Whether every value lies within +-limit; false for NaN.
template <typename Float, typename Bits>
GLASS_FAST_INLINE bool all_within(const Float* values, int64_t size, Float limit) {
  // As integers, magnitudes keep their order, and infinities and NaN are greater than all of them.
  constexpr Bits kMagnitude = std::numeric_limits<Bits>::max();
  const Bits greatest = std::bit_cast<Bits>(limit);
  Bits beyond = 0;
  for (int64_t i = 0; i < size; ++i) beyond |= (std::bit_cast<Bits>(values[i]) & kMagnitude) > greatest;
  return beyond == 0;
}

GLASS_FAST_CLONES
bool all_allowed(const float* values, int64_t size) {
  return all_within<float, int32_t>(values, size, std::numeric_limits<float>::max());
}

GLASS_FAST_CLONES
bool all_allowed(const double* values, int64_t size) { return all_within<double, int64_t>(values, size, kLargest); }

template <typename Float>
Result check(const Float* cost, const int64_t* counts, int64_t batch, int64_t slots, int64_t segments) {
  for (int64_t b = 0; counts && b < batch; ++b)
    if (counts[b] < 0 || counts[b] > segments) return {Status::kBadCount, b};
  // Segments that are not valid may hold anything, so a value out of range is not yet an error.
  if (all_allowed(cost, batch * slots * segments)) return {};
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t count = counts ? counts[b] : segments;
    for (int64_t s = 0; s < slots; ++s) {
      const Float* line = cost + (b * slots + s) * segments;
      for (int64_t k = 0; k < count; ++k) {
        if (!std::isfinite(line[k])) return {Status::kNonFinite, b, s, k};
        if (std::abs(static_cast<double>(line[k])) > kLargest) return {Status::kOverflow, b, s, k};
      }
    }
  }
  return {};
}

// Solves one problem by shortest paths.
template <typename Float>
void solve_by_paths(Assignment& assignment, const MatchingBatch<Float>& batch, int64_t b) {
  const Float* cost = batch.cost_of(b);
  const int64_t slots = batch.slots, segments = batch.segments, count = batch.count(b);
  int64_t* match = batch.match_of(b);
  if (slots == 0 || count == 0) return;
  const bool segments_are_rows = count <= slots;
  assignment.resize(std::min(count, slots), std::max(count, slots));
  if (segments_are_rows) {
    for (int64_t k = 0; k < count; ++k) {
      double* row = assignment.cost_of_row(k);
      for (int64_t s = 0; s < slots; ++s) row[s] = static_cast<double>(cost[s * segments + k]);
    }
  } else {
    for (int64_t s = 0; s < slots; ++s) {
      double* row = assignment.cost_of_row(s);
      for (int64_t k = 0; k < count; ++k) row[k] = static_cast<double>(cost[s * segments + k]);
    }
  }
  assignment.solve();
  if (segments_are_rows) {
    for (int64_t s = 0; s < slots; ++s)
      if (const int64_t k = assignment.row_of_column(s); k >= 0) match[k] = s;
  } else {
    for (int64_t k = 0; k < count; ++k) match[k] = assignment.row_of_column(k);
  }
}

// Starting threads costs some microseconds, about what this many inner steps take.
constexpr int64_t kStepsWorthThreads = 50'000;

int threads_worth(int64_t steps, int threads) { return steps < kStepsWorthThreads ? 1 : threads; }

}  // namespace

template <typename Float>
Result matching(const Float* cost, const int64_t* counts, int64_t batch, int64_t slots, int64_t segments,
                int threads, int64_t* match) {
  if (batch < 0 || slots < 0 || segments < 0) return {Status::kBadShape};
  std::fill(match, match + batch * segments, int64_t{-1});
  if (const Result result = check(cost, counts, batch, slots, segments); !result.ok()) return result;

  const MatchingBatch<Float> all{cost, counts, slots, segments, match};
  std::vector<int64_t> small, large;
  small.reserve(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) (std::max(slots, all.count(b)) <= kLaneSide ? small : large).push_back(b);

  const auto smalls = static_cast<int64_t>(small.size()), larges = static_cast<int64_t>(large.size());
  const int64_t vectors = (smalls + kLaneCount - 1) / kLaneCount;
  const int64_t side = std::min(std::max(slots, segments), kLaneSide);
  parallel_tasks(vectors, threads_worth(vectors * side * (int64_t{1} << side), threads),
                 [&](int, int64_t first, int64_t last) {
                   for (int64_t v = first; v < last; ++v)
                     solve_in_lanes(all, small.data() + v * kLaneCount,
                                    std::min(kLaneCount, smalls - v * kLaneCount));
                 });
  const int64_t narrow = std::min(slots, segments);
  parallel_tasks(larges, threads_worth(larges * narrow * narrow * std::max(slots, segments), threads),
                 [&](int, int64_t first, int64_t last) {
                   Assignment assignment;
                   for (int64_t i = first; i < last; ++i)
                     solve_by_paths(assignment, all, large[static_cast<size_t>(i)]);
                 });
  return {};
}

template Result matching<float>(const float*, const int64_t*, int64_t, int64_t, int64_t, int, int64_t*);
template Result matching<double>(const double*, const int64_t*, int64_t, int64_t, int64_t, int, int64_t*);

}  // namespace glass_fast
