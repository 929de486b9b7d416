#include "core/propagation.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "core/dense.h"
#include "core/parallel.h"

namespace glass_fast {

namespace {

constexpr int64_t kChunk =
    48;  // rows of the self map that are computed at a time; whole tiles of every instruction set

// maps are (classes, tokens), so that a row of the self map meets whole vectors.
struct Image {
  const Dense& d;
  const float* self_map;
  int64_t tokens, classes;

  int64_t chunks() const { return (tokens + kChunk - 1) / kChunk; }
  void refine(int64_t chunk, const float* maps, float* refined) const {
    const int64_t row = chunk * kChunk;
    d.rows_dot(self_map + row * tokens, std::min(kChunk, tokens - row), tokens, nullptr, maps, classes,
               refined + row, tokens);
  }
};

// Every other pass runs backwards: the rows that were read last are still in the cache.
int64_t in_turn(int64_t pass, int64_t index, int64_t count) { return pass % 2 == 0 ? index : count - 1 - index; }

// The passes over one image by several workers. Each keeps to its own rows, which stay in its cache, and then helps
// out with what nobody has begun; so it never waits for a worker that does not run.
class SharedPasses {
 public:
  SharedPasses(const Image& image, int64_t tau, float* maps, float* refined)
      : image_(image),
        tau_(tau),
        chunks_(image.chunks()),
        buffers_{maps, refined},
        taken_(static_cast<size_t>(tau * chunks_)),
        done_(static_cast<size_t>(tau)) {}

  void run(int64_t first, int64_t last) {
    for (int64_t pass = 0; pass < tau_; ++pass) {
      for (int64_t i = 0; i < last - first; ++i) attempt(pass, first + in_turn(pass, i, last - first));
      for (int64_t i = 0; i < chunks_; ++i) attempt(pass, (last + i) % chunks_);
      for (int spins = 0; done_[static_cast<size_t>(pass)].load(std::memory_order_acquire) < chunks_; ++spins)
        if (spins > 2000) std::this_thread::yield();
    }
  }

 private:
  void attempt(int64_t pass, int64_t chunk) {
    std::atomic<bool>& taken = taken_[static_cast<size_t>(pass * chunks_ + chunk)];
    if (taken.load(std::memory_order_relaxed) || taken.exchange(true, std::memory_order_relaxed)) return;
    image_.refine(chunk, buffers_[pass % 2], buffers_[(pass + 1) % 2]);
    done_[static_cast<size_t>(pass)].fetch_add(1, std::memory_order_release);
  }

  const Image& image_;
  const int64_t tau_, chunks_;
  float* const buffers_[2];
  std::vector<std::atomic<bool>> taken_;
  std::vector<std::atomic<int64_t>> done_;
};

void transposed(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[c * rows + r] = from[r * columns + c];
}

}  // namespace

Result propagation(const float* self_map, const float* class_maps, const PropagationShape& shape, int threads,
                   float* out) {
  const int64_t batch = shape.batch, tokens = shape.tokens, classes = shape.classes;
  if (batch < 0 || tokens < 0 || classes < 0 || shape.tau < 0) return {Status::kBadShape};
  const int64_t cells = tokens * classes;
  if (shape.tau == 0 || cells == 0) {
    std::copy(class_maps, class_maps + batch * cells, out);
    return {};
  }
  const auto image = [&](int64_t b) { return Image{dense(), self_map + b * tokens * tokens, tokens, classes}; };
  if (batch >= threads) {
    // An image at a time: much of its self map is in the cache from the second pass on.
    parallel_tasks(batch, threads, [&](int, int64_t first, int64_t last) {
      std::vector<float> maps(static_cast<size_t>(cells)), refined(static_cast<size_t>(cells));
      for (int64_t b = first; b < last; ++b) {
        const Image one = image(b);
        transposed(class_maps + b * cells, tokens, classes, maps.data());
        for (int64_t pass = 0; pass < shape.tau; ++pass, maps.swap(refined))
          for (int64_t i = 0; i < one.chunks(); ++i)
            one.refine(in_turn(pass, i, one.chunks()), maps.data(), refined.data());
        transposed(maps.data(), classes, tokens, out + b * cells);
      }
    });
    return {};
  }
  std::vector<float> maps(static_cast<size_t>(cells)), refined(static_cast<size_t>(cells));
  for (int64_t b = 0; b < batch; ++b) {
    const Image one = image(b);
    transposed(class_maps + b * cells, tokens, classes, maps.data());
    SharedPasses passes(one, shape.tau, maps.data(), refined.data());
    parallel_tasks(one.chunks(), threads, [&](int, int64_t first, int64_t last) { passes.run(first, last); });
    transposed(shape.tau % 2 == 0 ? maps.data() : refined.data(), classes, tokens, out + b * cells);
  }
  return {};
}

}  // namespace glass_fast
