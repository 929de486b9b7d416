#pragma once

// What the forward and the backward pass of slot attention share: sizes, where things lie in `saved`, scratch
// memory.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <vector>

#include "core/dense.h"
#include "core/slot_attention.h"

namespace glass_fast {

inline constexpr int64_t kTokenTile = 32;     // tokens whose attention is made and used while they are in the cache
inline constexpr int64_t kGroupColumns = 64;  // slots that one worker updates together, at most

// Scratch arrays of floats, uninitialised, each of its own allocation and aligned to a cache line. Sets the given
// pointers, which are valid as long as it lives.
class Scratch {
 public:
  struct Part {
    float** pointer;
    int64_t count;
  };

  explicit Scratch(std::initializer_list<Part> parts) {
    owned_.reserve(parts.size());
    for (const Part& part : parts) {
      const size_t bytes = (static_cast<size_t>(part.count) * sizeof(float) + 63) / 64 * 64;
      owned_.emplace_back(static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
      if (!owned_.back()) throw std::bad_alloc();
      *part.pointer = owned_.back().get();
    }
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::vector<std::unique_ptr<float, Free>> owned_;
};

// Sizes in short, and the numbering of slots over the batch: slot j of image i is column i * padded + j. Vectors of
// slots are cut at image borders, so that the values of an image do not depend on its neighbours.
struct SlotLayout {
  int64_t B, N, C, S, D, H, heads, T;
  int64_t padded;   // columns of an image
  int64_t columns;  // of the batch
  int64_t queries;  // heads * S; query j * heads + h is slot j, head h
  int64_t head;     // D / heads

  explicit SlotLayout(const SlotAttentionShape& s)
      : B(s.batch),
        N(s.tokens),
        C(s.channels),
        S(s.slots),
        D(s.width),
        H(s.hidden),
        heads(s.heads),
        T(s.iterations),
        padded((s.slots + 7) / 8 * 8),
        columns(s.batch * padded),
        queries(s.heads * s.slots),
        head(s.width / s.heads) {}

  static bool fits(const SlotAttentionShape& s) {
    const int64_t large = int64_t{1} << 31;
    for (const int64_t size : {s.batch, s.tokens, s.channels, s.slots, s.width, s.hidden, s.heads, s.iterations})
      if (size < 0 || size > large) return false;
    return s.tokens >= 1 && s.channels >= 1 && s.slots >= 1 && s.slots <= 64 && s.width >= 1 && s.heads >= 1 &&
           s.width % s.heads == 0 && s.iterations >= 1;
  }

  // Images that one worker takes at a time: enough to use the weights well, few enough to keep all workers busy.
  int64_t group_images(int threads) const {
    const int64_t each = (B + std::max(threads, 1) - 1) / std::max(threads, 1);
    return std::clamp<int64_t>(each, 1, std::max<int64_t>(1, kGroupColumns / padded));
  }
};

// Offsets into `saved`. "Columns" parts are (features, iterations * columns), iteration-major along a row; "rows"
// parts (iterations * columns * heads, channels).
struct SavedLayout {
  int64_t stride;                                              // of a columns part
  int64_t slots, updates, gates, hidden_new, queries, hidden;  // columns parts
  int64_t reads, absorbed;                                     // rows parts
  int64_t attention;                                           // (batch, iterations, queries, tokens)
  int64_t totals;         // (batch, iterations, queries): sum over tokens of attention + epsilon
  int64_t means, scales;  // (batch, tokens), of the input norm
  int64_t size;

  explicit SavedLayout(const SlotLayout& n) : stride(n.T * n.columns) {
    int64_t at = 0;
    const auto take = [&at](int64_t count) {
      const int64_t first = at;
      at += count;
      return first;
    };
    slots = take(n.D * stride);
    updates = take(n.D * stride);
    gates = take(3 * n.D * stride);
    hidden_new = take(n.D * stride);
    queries = take(n.D * stride);
    hidden = take(n.H * stride);
    reads = take(stride * n.heads * n.C);
    absorbed = take(stride * n.heads * n.C);
    attention = take(n.B * n.T * n.queries * n.N);
    totals = take(n.B * n.T * n.queries);
    means = take(n.B * n.N);
    scales = take(n.B * n.N);
    size = at;
  }
};

// A group of images that a worker handles together, and the copying between its compact matrices (features, width)
// and the columns of the batch.
struct SlotGroup {
  int64_t first, images;  // images
  int64_t column, real;   // first column of the batch; columns that belong to images
  int64_t width;          // real, rounded up to whole vectors

  SlotGroup(const SlotLayout& n, int64_t first_image, int64_t count)
      : first(first_image),
        images(count),
        column(first_image * n.padded),
        real(count * n.padded),
        width((real + kColumnAlign - 1) / kColumnAlign * kColumnAlign) {}

  void write(const float* compact, int64_t rows, float* batch, int64_t stride) const {
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(batch + r * stride + column, compact + r * width, static_cast<size_t>(real) * sizeof(float));
  }
  void read(const float* batch, int64_t stride, int64_t rows, float* compact) const {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(compact + r * width, batch + r * stride + column, static_cast<size_t>(real) * sizeof(float));
      std::memset(compact + r * width + real, 0, static_cast<size_t>(width - real) * sizeof(float));
    }
  }
};

// Slots of one image, (slots * heads, features) rows <-> its columns (heads, features, width) of a compact matrix.
inline void rows_from_columns(const float* columns, int64_t width, int64_t slots, int64_t heads, int64_t features,
                              float* rows) {
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t f = 0; f < features; ++f)
      for (int64_t j = 0; j < slots; ++j)
        rows[(j * heads + h) * features + f] = columns[(h * features + f) * width + j];
}
inline void columns_from_rows(const float* rows, int64_t slots, int64_t heads, int64_t features, float* columns,
                              int64_t width) {
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t f = 0; f < features; ++f)
      for (int64_t j = 0; j < slots; ++j)
        columns[(h * features + f) * width + j] = rows[(j * heads + h) * features + f];
}

}  // namespace glass_fast
