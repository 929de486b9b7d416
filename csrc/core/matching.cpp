#include "core/matching.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace glass_fast {

namespace {

// Shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987) for a dense problem with
// rows <= columns, in double. One object per thread: its buffers are reused from problem to problem.
class Assignment {
 public:
  // Column 0 is the virtual start of every path, so real columns are numbered from 1.
  void resize(int64_t rows, int64_t columns) {
    rows_ = rows;
    columns_ = columns;
    cost_.resize(static_cast<size_t>(rows * columns));
    row_price_.assign(static_cast<size_t>(rows), 0.0);
    column_price_.assign(static_cast<size_t>(columns) + 1, 0.0);
    row_of_.assign(static_cast<size_t>(columns) + 1, -1);
    previous_.resize(static_cast<size_t>(columns) + 1);
    distance_.resize(static_cast<size_t>(columns) + 1);
    settled_.resize(static_cast<size_t>(columns) + 1);
  }

  double* cost() { return cost_.data(); }
  int64_t row_of_column(int64_t column) const { return row_of_[static_cast<size_t>(column) + 1]; }

  void solve() {
    for (int64_t row = 0; row < rows_; ++row) insert(row);
  }

 private:
  // Adds one row to the matching along the path of least reduced cost (Dijkstra with prices).
  void insert(int64_t start) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    std::fill(distance_.begin(), distance_.end(), kInfinity);
    std::fill(settled_.begin(), settled_.end(), char{0});
    row_of_[0] = start;
    int64_t column = 0;
    do {
      settled_[column] = 1;
      const int64_t row = row_of_[column];
      const double* line = cost_.data() + row * columns_ - 1;
      const double price = row_price_[row];
      double least = kInfinity;
      int64_t next = 0;  // always replaced: costs are finite and a free column remains
      for (int64_t c = 1; c <= columns_; ++c) {
        if (settled_[c]) continue;
        const double reduced = line[c] - price - column_price_[c];
        if (reduced < distance_[c]) {
          distance_[c] = reduced;
          previous_[c] = column;
        }
        if (distance_[c] < least) {  // strict: the lowest column wins a tie
          least = distance_[c];
          next = c;
        }
      }
      for (int64_t c = 0; c <= columns_; ++c) {
        if (settled_[c]) {
          row_price_[row_of_[c]] += least;
          column_price_[c] -= least;
        } else {
          distance_[c] -= least;
        }
      }
      column = next;
    } while (row_of_[column] >= 0);
    while (column != 0) {
      const int64_t before = previous_[column];
      row_of_[column] = row_of_[before];
      column = before;
    }
  }

  int64_t rows_ = 0;
  int64_t columns_ = 0;
  std::vector<double> cost_;
  std::vector<double> row_price_;
  std::vector<double> column_price_;
  std::vector<double> distance_;
  std::vector<int64_t> row_of_;
  std::vector<int64_t> previous_;
  std::vector<char> settled_;
};

// Prices are sums of at most rows + columns costs, so below this no price can overflow.
constexpr double kLargest = 1e300;

template <typename Float>
Result check(const Float* cost, const int64_t* counts, int64_t batch, int64_t slots, int64_t segments) {
  if (batch < 0 || slots < 0 || segments < 0) return {Status::kBadShape};
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t count = counts ? counts[b] : segments;
    if (count < 0 || count > segments) return {Status::kBadCount, b};
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

// Solves one problem; `match` holds -1 on entry.
template <typename Float>
void solve_one(Assignment& assignment, const Float* cost, int64_t slots, int64_t segments, int64_t count,
               int64_t* match) {
  if (slots == 0 || count == 0) return;
  const bool segments_are_rows = count <= slots;
  assignment.resize(std::min(count, slots), std::max(count, slots));
  double* matrix = assignment.cost();
  if (segments_are_rows) {
    for (int64_t k = 0; k < count; ++k)
      for (int64_t s = 0; s < slots; ++s) *matrix++ = static_cast<double>(cost[s * segments + k]);
  } else {
    for (int64_t s = 0; s < slots; ++s)
      for (int64_t k = 0; k < count; ++k) *matrix++ = static_cast<double>(cost[s * segments + k]);
  }
  assignment.solve();
  if (segments_are_rows) {
    for (int64_t s = 0; s < slots; ++s)
      if (const int64_t k = assignment.row_of_column(s); k >= 0) match[k] = s;
  } else {
    for (int64_t k = 0; k < count; ++k) match[k] = assignment.row_of_column(k);
  }
}

}  // namespace

template <typename Float>
Result matching(const Float* cost, const int64_t* counts, int64_t batch, int64_t slots, int64_t segments,
                int threads, int64_t* match) {
  Result result = check(cost, counts, batch, slots, segments);
  if (result.status == Status::kBadShape) return result;
  std::fill(match, match + batch * segments, int64_t{-1});
  if (!result.ok()) return result;

  // Starting threads costs a few microseconds, about what this many inner steps take.
  const int64_t steps = batch * std::min(slots, segments) * std::min(slots, segments) * std::max(slots, segments);
  const int workers = steps < 50'000 ? 1 : std::max(1, threads);
#pragma omp parallel num_threads(workers)
  {
    Assignment assignment;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t count = counts ? counts[b] : segments;
      solve_one(assignment, cost + b * slots * segments, slots, segments, count, match + b * segments);
    }
  }
  return {};
}

template Result matching<float>(const float*, const int64_t*, int64_t, int64_t, int64_t, int, int64_t*);
template Result matching<double>(const double*, const int64_t*, int64_t, int64_t, int64_t, int, int64_t*);

}  // namespace glass_fast
