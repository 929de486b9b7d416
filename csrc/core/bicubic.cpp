#include "core/bicubic.h"

#include <algorithm>
#include <cmath>

#include "core/clones.h"

namespace glass_fast {

namespace {

constexpr float kA = -0.75f;

}  // namespace

GLASS_FAST_CLONES
std::vector<CubicTap> cubic_taps(int64_t in, int64_t out) {
  std::vector<CubicTap> taps(static_cast<size_t>(out));
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  for (int64_t i = 0; i < out; ++i) {
    const float position = scale * (static_cast<float>(i) + 0.5f) - 0.5f;
    const auto first = std::min(static_cast<int64_t>(std::floor(position)), in - 1);
    const float t = std::clamp(position - static_cast<float>(first), 0.0f, 1.0f);
    const float u = 1.0f - t;
    CubicTap& tap = taps[static_cast<size_t>(i)];
    for (int64_t j = 0; j < 4; ++j)
      tap.index[static_cast<size_t>(j)] = static_cast<int32_t>(std::clamp(first + j - 1, int64_t{0}, in - 1));
    const float far0 = t + 1.0f;
    const float far1 = u + 1.0f;
    tap.weight[0] = ((kA * far0 - 5.0f * kA) * far0 + 8.0f * kA) * far0 - 4.0f * kA;
    tap.weight[1] = ((kA + 2.0f) * t - (kA + 3.0f)) * t * t + 1.0f;
    tap.weight[2] = ((kA + 2.0f) * u - (kA + 3.0f)) * u * u + 1.0f;
    tap.weight[3] = ((kA * far1 - 5.0f * kA) * far1 + 8.0f * kA) * far1 - 4.0f * kA;
  }
  return taps;
}

}  // namespace glass_fast
