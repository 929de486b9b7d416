#pragma once

#include <cstdint>

#include "core/status.h"

namespace glass_fast {

// Minimum-cost assignment of segments to slots, one independent problem per batch row.
//
// cost    (batch, slots, segments), contiguous
// counts  (batch,) number of valid segments of each problem, or nullptr: all are valid
// match   (batch, segments), every element is written: slot of the segment, or -1 when the segment is not
//         valid or when there are fewer slots than segments and it was left over
// threads at most this many are used; the result does not depend on it
//
// min(slots, counts[b]) pairs are made and their total cost is minimal. Of equal minima:
// - max(slots, counts[b]) <= 9: every segment, from the first on, takes the lowest slot with which the minimum,
// summed
//   in double from the last segment to the first, is still reached (no slot at all counts as the highest).
// - larger problems: the one that the algorithm reaches first. Rows of the smaller side in order, each taking its
//   cheapest partner (the lowest-numbered of equals) if that is free; the others follow, each along a cheapest
//   augmenting path.
// Equal input gives equal output on every machine, whatever the rest of the batch is.
//
// On an error `match` holds -1 everywhere and the result names batch, slot (row) and segment (column).
template <typename Float>
Result matching(const Float* cost, const int64_t* counts, int64_t batch, int64_t slots, int64_t segments,
                int threads, int64_t* match);

}  // namespace glass_fast
