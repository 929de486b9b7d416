#include "core/mask_labels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/bicubic.h"
#include "core/clones.h"
#include "core/parallel.h"

namespace glass_fast {

namespace {

constexpr int64_t kRowsPerTask = 64;

GLASS_FAST_CLONES
void stretch_row(const float* source, const CubicTap* taps, int64_t width, float* out) {
  for (int64_t x = 0; x < width; ++x) {
    const CubicTap& tap = taps[x];
    float sum = source[tap.index[0]] * tap.weight[0];
    sum += source[tap.index[1]] * tap.weight[1];
    sum += source[tap.index[2]] * tap.weight[2];
    sum += source[tap.index[3]] * tap.weight[3];
    out[x] = sum;
  }
}

// Blends four stretched rows and keeps, per pixel, the greatest value so far and its label.
GLASS_FAST_CLONES
void take_best(const float* r0, const float* r1, const float* r2, const float* r3,
               const std::array<float, 4>& weight, int32_t label, int64_t width, float* best, int32_t* best_label) {
  const float w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
  for (int64_t x = 0; x < width; ++x) {
    float value = r0[x] * w0;
    value += r1[x] * w1;
    value += r2[x] * w2;
    value += r3[x] * w3;
    const bool better = value > best[x];  // strict: the lowest class index wins a tie
    best[x] = better ? value : best[x];
    best_label[x] = better ? label : best_label[x];
  }
}

GLASS_FAST_CLONES
void apply_thresholds(const float* best, const int32_t* best_label, float threshold, float uncertain_threshold,
                      int64_t width, uint8_t* out) {
  for (int64_t x = 0; x < width; ++x) {
    const int32_t below = best[x] >= uncertain_threshold ? kUncertainLabel : 0;
    out[x] = static_cast<uint8_t>(best[x] >= threshold ? best_label[x] : below);
  }
}

// Stretched rows of one class, the last four of them. Source rows are asked for in ascending order, so each
// is stretched once per task.
class RowWindow {
 public:
  void reset(const float* map, int64_t map_width, int64_t width) {
    map_ = map;
    map_width_ = map_width;
    width_ = width;
    rows_.resize(static_cast<size_t>(4 * width));
    held_.fill(-1);
  }

  const float* row(int32_t index, const CubicTap* taps) {
    float* slot = rows_.data() + (index & 3) * width_;
    if (held_[static_cast<size_t>(index & 3)] != index) {
      stretch_row(map_ + index * map_width_, taps, width_, slot);
      held_[static_cast<size_t>(index & 3)] = index;
    }
    return slot;
  }

 private:
  const float* map_ = nullptr;
  int64_t map_width_ = 0;
  int64_t width_ = 0;
  std::vector<float> rows_;
  std::array<int32_t, 4> held_{};
};

// Buffers of one thread.
struct Scratch {
  std::vector<RowWindow> windows;
  std::vector<float> best;
  std::vector<int32_t> best_label;
};

Result check(const float* maps, const uint8_t* labels, const MaskLabelsShape& shape) {
  if (shape.batch < 0 || shape.classes < 0 || shape.map_height < 1 || shape.map_width < 1 || shape.height < 1 ||
      shape.width < 1)
    return {Status::kBadShape};
  const int64_t cells = shape.map_height * shape.map_width;
  for (int64_t i = 0; i < shape.batch * shape.classes; ++i) {
    if (labels[i] == 0) continue;
    const int64_t b = i / shape.classes, k = i % shape.classes;
    if (labels[i] == kUncertainLabel) return {Status::kBadLabel, b, k};
    for (int64_t c = 0; c < cells; ++c)
      if (!std::isfinite(maps[i * cells + c])) return {Status::kNonFinite, b, k, c};
  }
  return {};
}

}  // namespace

Result mask_labels(const float* maps, const uint8_t* labels, const MaskLabelsShape& shape, float threshold,
                   float uncertain_threshold, int threads, uint8_t* out) {
  if (const Result result = check(maps, labels, shape); !result.ok()) return result;
  const std::vector<CubicTap> horizontal = cubic_taps(shape.map_width, shape.width);
  const std::vector<CubicTap> vertical = cubic_taps(shape.map_height, shape.height);
  const int64_t cells = shape.map_height * shape.map_width;
  const int64_t tasks_per_image = (shape.height + kRowsPerTask - 1) / kRowsPerTask;
  const int64_t tasks = shape.batch * tasks_per_image;

  parallel_tasks(tasks, threads, [&](int, int64_t first_task, int64_t last_task) {
    Scratch scratch;
    scratch.windows.resize(static_cast<size_t>(shape.classes));
    scratch.best.resize(static_cast<size_t>(shape.width));
    scratch.best_label.resize(static_cast<size_t>(shape.width));
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t b = task / tasks_per_image;
      const int64_t first = (task % tasks_per_image) * kRowsPerTask;
      const int64_t last = std::min(first + kRowsPerTask, shape.height);
      for (int64_t k = 0; k < shape.classes; ++k)
        if (labels[b * shape.classes + k] != 0)
          scratch.windows[static_cast<size_t>(k)].reset(maps + (b * shape.classes + k) * cells, shape.map_width,
                                                        shape.width);
      for (int64_t y = first; y < last; ++y) {
        // Below every value that can pass a threshold, so a pixel without classes becomes background.
        std::fill(scratch.best.begin(), scratch.best.end(), -INFINITY);
        std::fill(scratch.best_label.begin(), scratch.best_label.end(), 0);
        const CubicTap& tap = vertical[static_cast<size_t>(y)];
        for (int64_t k = 0; k < shape.classes; ++k) {
          const int32_t label = labels[b * shape.classes + k];
          if (label == 0) continue;
          RowWindow& window = scratch.windows[static_cast<size_t>(k)];
          const float* r0 = window.row(tap.index[0], horizontal.data());
          const float* r1 = window.row(tap.index[1], horizontal.data());
          const float* r2 = window.row(tap.index[2], horizontal.data());
          const float* r3 = window.row(tap.index[3], horizontal.data());
          take_best(r0, r1, r2, r3, tap.weight, label, shape.width, scratch.best.data(), scratch.best_label.data());
        }
        apply_thresholds(scratch.best.data(), scratch.best_label.data(), threshold, uncertain_threshold,
                         shape.width, out + (b * shape.height + y) * shape.width);
      }
    }
  });
  return {};
}

}  // namespace glass_fast
