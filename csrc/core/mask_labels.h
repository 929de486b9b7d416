#pragma once

#include <cstdint>

#include "core/status.h"

namespace glass_fast {

inline constexpr uint8_t kUncertainLabel = 255;

struct MaskLabelsShape {
  int64_t batch;
  int64_t classes;
  int64_t map_height;
  int64_t map_width;
  int64_t height;  // of the result, pixels
  int64_t width;
};

// Class maps -> label image: bicubic upsampling, arg max over the classes and the two thresholds, fused per
// output row (Dataset Diffusion's rule: best >= threshold -> its label, >= uncertain_threshold -> 255, else 0).
//
// maps    (batch, classes, map_height, map_width), contiguous
// labels  (batch, classes); 0 marks padding, whose maps are never read
// out     (batch, height, width), every element is written unless an error is returned
// threads at most this many are used; the result does not depend on it
//
// Of equal values the lowest class index wins. Memory besides the result: 4 * classes + 2 rows per thread.
Result mask_labels(const float* maps, const uint8_t* labels, const MaskLabelsShape& shape, float threshold,
                   float uncertain_threshold, int threads, uint8_t* out);

}  // namespace glass_fast
