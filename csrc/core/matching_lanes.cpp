#include "core/matching_lanes.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/clones.h"

namespace glass_fast {

namespace {

constexpr unsigned kSide = static_cast<unsigned>(kLaneSide);
constexpr size_t kLanes = static_cast<size_t>(kLaneCount);
constexpr double kForbidden = std::numeric_limits<double>::infinity();

#if defined(__GNUC__)
// Vectors wider than the machine's are split by the compiler.
typedef double Vector __attribute__((vector_size(kLanes * sizeof(double))));
#define GLASS_FAST_INLINE inline __attribute__((always_inline))
#else
struct Vector {
  double lane[kLanes];
};
#define GLASS_FAST_INLINE inline
#endif

// Interleaved problems, padded to a common square.
struct alignas(64) Lanes {
  double cost[kSide * kSide][kLanes];        // [segment * side + slot]
  double table[size_t{1} << kSide][kLanes];  // [set of free slots]: least total of the segments that take them
};

// best = min(best, cost + rest), lane by lane.
GLASS_FAST_INLINE void take_lesser(const double* cost, const double* rest, Vector& best) {
#if defined(__GNUC__)
  const Vector sum = *reinterpret_cast<const Vector*>(cost) + *reinterpret_cast<const Vector*>(rest);
  best = sum < best ? sum : best;
#else
  for (size_t lane = 0; lane < kLanes; ++lane) best.lane[lane] = std::min(best.lane[lane], cost[lane] + rest[lane]);
#endif
}

// Table entries of all sets with kSize slots; `row` holds the costs of the segment that chooses among them.
template <unsigned kSize>
GLASS_FAST_INLINE void fill_level(const double (*row)[kLanes], unsigned side, double (*table)[kLanes]) {
  unsigned free = (1u << kSize) - 1;
  while (free < 1u << side) {
    Vector best;
    for (size_t lane = 0; lane < kLanes; ++lane) reinterpret_cast<double*>(&best)[lane] = kForbidden;
    unsigned left = free;
#pragma GCC unroll 8
    for (unsigned i = 0; i < kSize; ++i) {
      const unsigned slot = static_cast<unsigned>(std::countr_zero(left));
      take_lesser(row[slot], table[free ^ (1u << slot)], best);
      left &= left - 1;
    }
    *reinterpret_cast<Vector*>(table[free]) = best;
    // The next greater number with as many bits.
    const unsigned lowest = free & -free, carried = free + lowest;
    free = carried | ((carried ^ free) >> (2 + std::countr_zero(free)));
  }
}

// Dynamic programme over sets of free slots, from the last of `levels` segments to the first. After it the entry
// of the full set is the least total.
GLASS_FAST_CLONES_WIDE
void fill_table(unsigned side, unsigned levels, Lanes& lanes) {
  // The slots that all segments together leave free cost nothing.
  for (unsigned free = 0; free < 1u << side; ++free)
    if (static_cast<unsigned>(std::popcount(free)) == side - levels) std::fill_n(lanes.table[free], kLanes, 0.0);
  for (unsigned size = side - levels + 1; size <= side; ++size) {
    const auto* row = lanes.cost + (side - size) * side;
    switch (size) {
      case 1:
        fill_level<1>(row, side, lanes.table);
        break;
      case 2:
        fill_level<2>(row, side, lanes.table);
        break;
      case 3:
        fill_level<3>(row, side, lanes.table);
        break;
      case 4:
        fill_level<4>(row, side, lanes.table);
        break;
      case 5:
        fill_level<5>(row, side, lanes.table);
        break;
      case 6:
        fill_level<6>(row, side, lanes.table);
        break;
      case 7:
        fill_level<7>(row, side, lanes.table);
        break;
      default:
        fill_level<8>(row, side, lanes.table);
    }
  }
}

// Copies one problem into a lane. Where one side has more members than the other, the surplus is left over: slots
// and segments added to complete the square take it at no cost, and nothing that could be matched.
template <typename Float>
void load(const Float* cost, int64_t stride, unsigned slots, unsigned count, unsigned side, unsigned levels,
          size_t lane, Lanes& lanes) {
  for (unsigned k = 0; k < count; ++k)
    for (unsigned s = 0; s < slots; ++s) lanes.cost[k * side + s][lane] = static_cast<double>(cost[s * stride + k]);
  const double added_slot = count < slots ? kForbidden : 0.0;
  for (unsigned k = 0; k < count; ++k)
    for (unsigned s = slots; s < side; ++s) lanes.cost[k * side + s][lane] = added_slot;
  const double added_segment = count < slots ? 0.0 : kForbidden;
  for (unsigned k = count; k < levels; ++k)
    for (unsigned s = 0; s < side; ++s) lanes.cost[k * side + s][lane] = s < slots ? added_segment : 0.0;
}

// Follows the choices from the full set on: the lowest slot that gives the entry's value.
void trace(const Lanes& lanes, size_t lane, unsigned side, unsigned slots, unsigned count, int64_t* match) {
  unsigned free = (1u << side) - 1;
  for (unsigned k = 0; k < count; ++k) {
    const double goal = lanes.table[free][lane];
    unsigned reaching = 0;
    // All slots are tried, since a branch on the costs would be mispredicted.
    for (unsigned left = free; left != 0; left &= left - 1) {
      const unsigned slot = static_cast<unsigned>(std::countr_zero(left));
      const double sum = lanes.cost[k * side + slot][lane] + lanes.table[free ^ (1u << slot)][lane];
      reaching |= static_cast<unsigned>(sum == goal) << slot;
    }
    const unsigned slot = static_cast<unsigned>(std::countr_zero(reaching));
    match[k] = slot < slots ? static_cast<int64_t>(slot) : -1;
    free &= ~(1u << slot);
  }
}

}  // namespace

template <typename Float>
void solve_in_lanes(const MatchingBatch<Float>& batch, const int64_t* chosen, int64_t size) {
  const auto slots = static_cast<unsigned>(batch.slots);
  unsigned levels = 0;
  for (int64_t i = 0; i < size; ++i) levels = std::max(levels, static_cast<unsigned>(batch.count(chosen[i])));
  const unsigned side = std::max(slots, levels);
  Lanes lanes;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    // Lanes without a problem of their own repeat the last one.
    const int64_t b = chosen[std::min(static_cast<int64_t>(lane), size - 1)];
    load(batch.cost_of(b), batch.segments, slots, static_cast<unsigned>(batch.count(b)), side, levels, lane, lanes);
  }
  fill_table(side, levels, lanes);
  for (int64_t i = 0; i < size; ++i)
    trace(lanes, static_cast<size_t>(i), side, slots, static_cast<unsigned>(batch.count(chosen[i])),
          batch.match_of(chosen[i]));
}

template void solve_in_lanes<float>(const MatchingBatch<float>&, const int64_t*, int64_t);
template void solve_in_lanes<double>(const MatchingBatch<double>&, const int64_t*, int64_t);

}  // namespace glass_fast
