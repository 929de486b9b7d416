#pragma once

#include <cstdint>

#include "core/status.h"

namespace glass_fast {

struct PropagationShape {
  int64_t batch;
  int64_t tokens;
  int64_t classes;
  int64_t tau;  // passes, at least 0
};

// Class maps refined by the self-attention map: self_map^tau class_maps, as tau products with a thin matrix.
//
// self_map   (batch, tokens, tokens), contiguous, row = query
// class_maps (batch, tokens, classes), contiguous
// out        (batch, tokens, classes), every element is written; may not overlap the inputs
// threads    at most this many are used; the result does not depend on it
//
// NaN and infinities follow IEEE arithmetic. Error: kBadShape for a negative size.
Result propagation(const float* self_map, const float* class_maps, const PropagationShape& shape, int threads,
                   float* out);

}  // namespace glass_fast
