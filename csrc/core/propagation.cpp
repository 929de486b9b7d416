#include "core/propagation.h"

#include <algorithm>
#include <vector>

#include "core/dense.h"
#include "core/parallel.h"

namespace glass_fast {

namespace {

// One pass for a range of query tokens; maps are (classes, tokens), so that a row of the self map meets whole
// vectors.
void pass(const Dense& d, const float* self_map, int64_t tokens, int64_t classes, int64_t first, int64_t last,
          const float* maps, float* refined) {
  d.rows_dot(self_map + first * tokens, last - first, tokens, maps, classes, refined + first, tokens);
}

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
  const Dense& d = dense();
  if (batch >= threads) {
    // An image at a time: its self map is in the cache from the second pass on.
    parallel_tasks(batch, threads, [&](int, int64_t first, int64_t last) {
      std::vector<float> maps(static_cast<size_t>(cells)), refined(static_cast<size_t>(cells));
      for (int64_t b = first; b < last; ++b) {
        transposed(class_maps + b * cells, tokens, classes, maps.data());
        for (int64_t k = 0; k < shape.tau; ++k, maps.swap(refined))
          pass(d, self_map + b * tokens * tokens, tokens, classes, 0, tokens, maps.data(), refined.data());
        transposed(maps.data(), classes, tokens, out + b * cells);
      }
    });
    return {};
  }
  std::vector<float> maps(static_cast<size_t>(cells)), refined(static_cast<size_t>(cells));
  for (int64_t b = 0; b < batch; ++b) {
    transposed(class_maps + b * cells, tokens, classes, maps.data());
    // Equal ranges in every pass keep each thread's rows in its own cache.
    for (int64_t k = 0; k < shape.tau; ++k, maps.swap(refined))
      parallel_tasks(tokens, threads, [&](int, int64_t first, int64_t last) {
        pass(d, self_map + b * tokens * tokens, tokens, classes, first, last, maps.data(), refined.data());
      });
    transposed(maps.data(), classes, tokens, out + b * cells);
  }
  return {};
}

}  // namespace glass_fast
