#pragma once

// Random shapes, values and exactly sized buffers for fuzz_core. Own generator: the standard distributions differ
// between libraries, and a seed has to mean the same input everywhere.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <type_traits>

namespace glass_fast::fuzz {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t limit) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(limit)); }
  int64_t between(int64_t least, int64_t most) { return least + below(most - least + 1); }
  bool one_in(int64_t n) { return below(n) == 0; }
  double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

  template <typename T>
  T of(std::initializer_list<T> choices) {
    return choices.begin()[below(static_cast<int64_t>(choices.size()))];
  }

  // A size of at least `least` and at most `most`, often the least; now and then one too small.
  int64_t size(int64_t least, int64_t most) {
    if (one_in(100)) return of({least - 1, int64_t{-7}, std::numeric_limits<int64_t>::min()});
    return one_in(12) ? least : between(least, most);
  }

 private:
  uint64_t state_;
};

// A buffer of exactly `count` elements (none if negative), so that AddressSanitizer sees the first one beyond.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : size_(std::max<int64_t>(count, 0)), data_(new T[static_cast<size_t>(size_)]) {}

  int64_t size() const { return size_; }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_[static_cast<size_t>(i)]; }
  T* begin() const { return get(); }
  T* end() const { return get() + size_; }

  // `round` tells two patterns apart: what was not written then differs between two runs.
  void poison(int round) const {
    const uint32_t pattern = round == 0 ? 0x7fa0dead : 0x7fa0beef;  // signalling NaN as float
    for (int64_t i = 0; i < size_; ++i)
      std::memcpy(&data_[static_cast<size_t>(i)], &pattern, std::min(sizeof(T), sizeof(pattern)));
  }

 private:
  int64_t size_;
  std::unique_ptr<T[]> data_;
};

// How the values of one buffer are drawn.
enum class Kind { kPlain, kTies, kSpecial };

inline Kind draw_kind(Random& random) {
  return random.of({Kind::kPlain, Kind::kPlain, Kind::kTies, Kind::kSpecial});
}

template <typename Float>
Float special_value(Random& random) {
  using Limits = std::numeric_limits<Float>;
  const Float value = random.of({Limits::quiet_NaN(), Limits::infinity(), Limits::max(), Limits::denorm_min(),
                                 Limits::min(), Float{0}, static_cast<Float>(1e38)});
  return random.one_in(2) ? value : -value;
}

template <typename Float>
void draw(Random& random, Kind kind, const Buffer<Float>& values, double least = -1.0, double most = 1.0) {
  const int64_t rarity = random.of({int64_t{2}, int64_t{20}, int64_t{200}});
  for (Float& value : values) {
    value = kind == Kind::kTies ? static_cast<Float>(random.between(-2, 2))
                                : static_cast<Float>(least + (most - least) * random.unit());
    if (kind == Kind::kSpecial && random.one_in(rarity)) value = special_value<Float>(random);
  }
}

// Product of sizes, 0 as soon as one is not positive.
inline int64_t cells(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size <= 0) return 0;
    product *= size;
  }
  return product;
}

// Equal to the last bit, except that one NaN is as good as another.
template <typename T>
bool same(const Buffer<T>& a, const Buffer<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](T x, T y) {
    if constexpr (std::is_floating_point_v<T>)
      return (std::isnan(x) && std::isnan(y)) || std::memcmp(&x, &y, sizeof(T)) == 0;
    else
      return x == y;
  });
}

struct Digest {
  uint64_t value = 0;

  template <typename T>
  void add(const Buffer<T>& values) {
    for (const T& x : values) {
      uint64_t bits = 0;
      std::memcpy(&bits, &x, sizeof(T));
      if constexpr (std::is_floating_point_v<T>)
        if (std::isnan(x)) bits = ~uint64_t{0};  // one NaN is as good as another
      value = std::rotl((value ^ bits) * 0x9e3779b97f4a7c15u, 29);
    }
  }
};

inline bool all_moderate(const float* values, int64_t count) {
  return std::all_of(values, values + count, [](float x) { return std::abs(x) <= 4.0f; });  // false for NaN
}

}  // namespace glass_fast::fuzz
