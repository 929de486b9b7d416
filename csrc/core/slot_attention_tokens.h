#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/dense.h"
#include "core/slot_attention_layout.h"

namespace glass_fast {

// Products with the normed tokens y = (x - mean) * scale * weight + bias of one image, without making y: weight and
// bias move to the few rows on the other side. The mean is subtracted where x is read, so nothing cancels.
//
//   y . q          = scale * ((x - mean) . (weight * q)) + bias . q
//   sum_n c_n y_n  = weight * sum_n (c_n scale_n) (x_n - mean_n) + bias * sum_n c_n
class NormedTokens {
 public:
  NormedTokens(int64_t queries, int64_t channels)
      : queries_(queries),
        channels_(channels),
        scratch_({{&folded_, queries * channels},
                  {&offsets_, queries},
                  {&weighted_, queries * kTokenTile},
                  {&partial_, queries * kPartialSums}}) {}

  void image(const float* tokens, const float* means, const float* scales, const float* weight, const float* bias) {
    tokens_ = tokens;
    means_ = means;
    scales_ = scales;
    weight_ = weight;
    bias_ = bias;
  }

  // Sets the rows (queries, channels) of the following dot(), and the sums over tokens to 0.
  void fold(const float* rows) {
    std::fill(partial_, partial_ + queries_ * kPartialSums, 0.0f);
    for (int64_t q = 0; q < queries_; ++q) {
      float offset = 0;
      for (int64_t c = 0; c < channels_; ++c) {
        folded_[q * channels_ + c] = rows[q * channels_ + c] * weight_[c];
        offset += rows[q * channels_ + c] * bias_[c];
      }
      offsets_[q] = offset;
    }
  }

  const float* offsets() const { return offsets_; }
  float* weighted() const { return weighted_; }
  float* partial_sums() const { return partial_; }
  AttendTile tile(int64_t first, int64_t count) const { return {queries_, count, kTokenTile, scales_ + first}; }

  // out[q * kTokenTile + i] = (x - mean) . (weight * rows[q]) of `count` tokens: what Dense::attend begins with.
  void dot(int64_t first, int64_t count, float* out) const {
    d_.rows_dot(tokens_ + first * channels_, count, channels_, means_ + first, folded_, queries_, out, kTokenTile);
  }

  // sums[q] += sum over i of weighted()[q * kTokenTile + i] * (x - mean) of `count` tokens; see finish().
  void accumulate(int64_t first, int64_t count, float* sums) const {
    d_.rows_accumulate(tokens_ + first * channels_, count, channels_, means_ + first, weighted_, kTokenTile,
                       queries_, sums);
  }

  void sums(float* out) const {
    for (int64_t q = 0; q < queries_; ++q) {
      float total = 0;
      for (int64_t i = 0; i < kPartialSums; ++i) total += partial_[q * kPartialSums + i];
      out[q] = total;
    }
  }

  // Turns what accumulate() left into factor * sum_n c_n y_n, where totals[q] = sum_n c_n.
  void finish(const float* totals, const float* factors, float* sums) const {
    for (int64_t q = 0; q < queries_; ++q)
      for (int64_t c = 0; c < channels_; ++c) {
        float& value = sums[q * channels_ + c];
        value = (value * weight_[c] + totals[q] * bias_[c]) * factors[q];
      }
  }

 private:
  const Dense& d_ = dense();
  const int64_t queries_, channels_;
  const float *tokens_ = nullptr, *means_ = nullptr, *scales_ = nullptr, *weight_ = nullptr, *bias_ = nullptr;
  float *folded_, *offsets_, *weighted_, *partial_;
  const Scratch scratch_;
};

}  // namespace glass_fast
