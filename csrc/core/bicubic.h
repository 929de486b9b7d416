#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace glass_fast {

// Four source positions (clamped to the border) and weights of one output position.
struct CubicTap {
  std::array<int32_t, 4> index;
  std::array<float, 4> weight;
};

// Taps for resizing `in` samples to `out`, cubic convolution with a = -0.75, half-pixel centres
// (align_corners = False), no antialiasing: the definition and the float arithmetic of PyTorch's
// upsample_bicubic2d, so that results agree to the last bit on machines with the same instruction set.
std::vector<CubicTap> cubic_taps(int64_t in, int64_t out);

}  // namespace glass_fast
