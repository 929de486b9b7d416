#include "core/matching_lanes.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/clones.h"
#include "core/instruction_set.h"

namespace glass_fast {

namespace {

constexpr unsigned kSide = static_cast<unsigned>(kLaneSide);
constexpr unsigned kLanes = static_cast<unsigned>(kLaneCount);
constexpr double kForbidden = std::numeric_limits<double>::infinity();

// Sets of free slots are bit masks. They are worked on in blocks that agree in all but the lowest slots, so that
// the entries of a block stay in registers.
constexpr unsigned kLowSlots = 3;
constexpr unsigned kBlock = 1u << kLowSlots;

// Interleaved problems, completed to a common square of side kLowSlots to kSide.
struct alignas(64) Lanes {
  double cost[kSide * kSide][kLanes];  // [slot * kSide + segment]
  double table[1u << kSide][kLanes];   // [set of free slots]: least total of the last segments, one for each slot
};

// best = min(best, cost + rest) for vectors (or single doubles) in memory that is aligned to their size.
template <typename Vector>
GLASS_FAST_INLINE void take_lesser(const double* cost, const Vector& rest, Vector& best) {
  const Vector sum = *reinterpret_cast<const Vector*>(cost) + rest;
  best = sum < best ? sum : best;
}

// Dynamic programme over the sets of free slots, from the last segment to the first. After it the entry of the full
// set is the least total. Works on the first `used` lanes, as many at a time as `Vector` holds.
template <typename Vector>
GLASS_FAST_INLINE void fill_table(unsigned side, unsigned used, Lanes& lanes) {
  constexpr size_t kWidth = sizeof(Vector) / sizeof(double);
  const Vector zero{};
  const Vector forbidden = zero + kForbidden;
  for (size_t lane = 0; lane < used; lane += kWidth) {
    for (unsigned high = 0; high < 1u << (side - kLowSlots); ++high) {
      // Costs for the segment that chooses from `high` alone; with more slots free it is an earlier one.
      const auto* cost = lanes.cost + (side - static_cast<unsigned>(std::popcount(high)));
      Vector best[kBlock];
      best[0] = high == 0 ? zero : forbidden;
#pragma GCC unroll 8
      for (unsigned low = 1; low < kBlock; ++low) best[low] = forbidden;
      for (unsigned left = high; left != 0; left &= left - 1) {
        const unsigned slot = static_cast<unsigned>(std::countr_zero(left));
        const auto* rest = lanes.table + (high ^ (1u << slot)) * kBlock;
        const auto* column = cost + (kLowSlots + slot) * kSide;
#pragma GCC unroll 8
        for (unsigned low = 0; low < kBlock; ++low)
          take_lesser(column[-std::popcount(low)] + lane, *reinterpret_cast<const Vector*>(rest[low] + lane),
                      best[low]);
      }
      auto* entries = lanes.table + high * kBlock;
#pragma GCC unroll 8
      for (unsigned low = 0; low < kBlock; ++low) {
#pragma GCC unroll 8
        for (unsigned slot = 0; slot < kLowSlots; ++slot)
          if (low >> slot & 1u)
            take_lesser(cost[int(slot * kSide) - std::popcount(low)] + lane, best[low ^ (1u << slot)], best[low]);
        *reinterpret_cast<Vector*>(entries[low] + lane) = best[low];
      }
    }
  }
}

#if defined(__GNUC__)
typedef double Vector2 __attribute__((vector_size(16), may_alias));
void fill_any(unsigned side, unsigned used, Lanes& lanes) { fill_table<Vector2>(side, used, lanes); }
#else
void fill_any(unsigned side, unsigned used, Lanes& lanes) { fill_table<double>(side, used, lanes); }
#endif

#if defined(__GNUC__) && defined(__x86_64__)
typedef double Vector4 __attribute__((vector_size(32), may_alias));
typedef double Vector8 __attribute__((vector_size(64), may_alias));

__attribute__((target("avx2,bmi,bmi2,popcnt"))) void fill_avx2(unsigned side, unsigned used, Lanes& lanes) {
  fill_table<Vector4>(side, used, lanes);
}

__attribute__((target("avx512f,bmi,bmi2,popcnt"))) void fill_avx512(unsigned side, unsigned used, Lanes& lanes) {
  fill_table<Vector8>(side, used, lanes);
}
#endif

using Fill = void (*)(unsigned, unsigned, Lanes&);

// All forms do the same operations on each lane, so results agree to the last bit.
Fill choose_fill() {
#if defined(__GNUC__) && defined(__x86_64__)
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return fill_avx512;
    case InstructionSet::kAvx2:
      return fill_avx2;
    case InstructionSet::kBase:
      break;
  }
#endif
  return fill_any;
}

// Copies one problem into a lane. Where one side has more members than the other, the surplus is left over: slots
// and segments added to complete the square take it at no cost, and nothing that could be matched.
template <typename Float>
void load(const Float* cost, int64_t stride, unsigned slots, unsigned count, unsigned side, unsigned lane,
          Lanes& lanes) {
  const double added_slot = count < slots ? kForbidden : 0.0;
  const double added_segment = count < slots ? 0.0 : kForbidden;
  for (unsigned s = 0; s < slots; ++s, cost += stride) {
    auto* out = lanes.cost + s * kSide;
#pragma GCC unroll 4
    for (unsigned k = 0; k < count; ++k) out[k][lane] = static_cast<double>(cost[k]);
    for (unsigned k = count; k < side; ++k) out[k][lane] = added_segment;
  }
  for (unsigned s = slots; s < side; ++s)
    for (unsigned k = 0; k < side; ++k) lanes.cost[s * kSide + k][lane] = k < count ? added_slot : 0.0;
}

// Slots that the segments take, from the full set on: the lowest slot that gives the entry's value. All lanes go
// down together, which hides the latency of each, and all slots are tried: a branch on costs would be mispredicted.
void trace(const Lanes& lanes, unsigned used, unsigned side, unsigned levels, uint8_t (*taken)[kLanes]) {
  unsigned free[kLanes];
  std::fill_n(free, kLanes, (1u << side) - 1);
  for (unsigned k = 0; k < levels; ++k) {
    for (unsigned lane = 0; lane < used; ++lane) {
      const double goal = lanes.table[free[lane]][lane];
      unsigned reaching = 0, left = free[lane];
      for (unsigned i = k + 1; i < side; ++i) {
        const unsigned bit = left & -left;
        left ^= bit;
        const auto slot = static_cast<unsigned>(std::countr_zero(bit));
        const double sum = lanes.cost[slot * kSide + k][lane] + lanes.table[free[lane] ^ bit][lane];
        reaching |= bit & -static_cast<unsigned>(sum <= goal);
      }
      // `left` is the highest slot: right if no other is.
      const auto slot = static_cast<unsigned>(std::countr_zero(reaching | left));
      taken[k][lane] = static_cast<uint8_t>(slot);
      free[lane] ^= 1u << slot;
    }
  }
}

}  // namespace

template <typename Float>
void solve_in_lanes(const MatchingBatch<Float>& batch, const int64_t* chosen, int64_t size) {
  static const Fill fill = choose_fill();
  const auto slots = static_cast<unsigned>(batch.slots), used = static_cast<unsigned>(size);
  unsigned levels = 0;
  for (unsigned lane = 0; lane < used; ++lane)
    levels = std::max(levels, static_cast<unsigned>(batch.count(chosen[lane])));
  const unsigned side = std::max({slots, levels, kLowSlots});
  Lanes lanes;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    // Lanes without a problem of their own repeat the last one, so that no stale value is ever computed with.
    const int64_t b = chosen[std::min(lane, used - 1)];
    load(batch.cost_of(b), batch.segments, slots, static_cast<unsigned>(batch.count(b)), side, lane, lanes);
  }
  fill(side, used, lanes);
  uint8_t taken[kSide][kLanes];
  trace(lanes, used, side, levels, taken);
  for (unsigned lane = 0; lane < used; ++lane) {
    int64_t* match = batch.match_of(chosen[lane]);
    for (int64_t k = 0; k < batch.count(chosen[lane]); ++k)
      if (taken[k][lane] < slots) match[k] = taken[k][lane];
  }
}

template void solve_in_lanes<float>(const MatchingBatch<float>&, const int64_t*, int64_t);
template void solve_in_lanes<double>(const MatchingBatch<double>&, const int64_t*, int64_t);

}  // namespace glass_fast
