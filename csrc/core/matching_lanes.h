#pragma once

#include <cstdint>

namespace glass_fast {

// Greatest side, max(slots, count), of a problem for solve_in_lanes. It is part of the tie rule of matching() and
// therefore one number for all machines. The work doubles with every slot; at 10, shortest paths already win for
// small batches and for machines with narrow vectors.
inline constexpr int64_t kLaneSide = 9;

// Problems that are solved side by side, one per lane of a vector.
inline constexpr int64_t kLaneCount = 8;

// A checked batch as matching() takes it; `match` holds -1 on entry.
template <typename Float>
struct MatchingBatch {
  const Float* cost;      // (batch, slots, segments)
  const int64_t* counts;  // (batch,) or nullptr
  int64_t slots;
  int64_t segments;
  int64_t* match;  // (batch, segments)

  int64_t count(int64_t b) const { return counts ? counts[b] : segments; }
  const Float* cost_of(int64_t b) const { return cost + b * slots * segments; }
  int64_t* match_of(int64_t b) const { return match + b * segments; }
};

// Solves the problems whose batch indices are chosen[0] to chosen[size - 1], 1 <= size <= kLaneCount, with
// max(slots, count) <= kLaneSide each, and writes their matches. A result depends on its own problem alone.
//
// Minimal is the total summed in double from the last segment to the first; of equal minima every segment, from the
// first on, takes the lowest slot that still leads to it (none at all counts as the highest slot).
template <typename Float>
void solve_in_lanes(const MatchingBatch<Float>& batch, const int64_t* chosen, int64_t size);

}  // namespace glass_fast
