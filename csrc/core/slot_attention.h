#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/status.h"

namespace glass_fast {

struct SlotAttentionShape {
  int64_t batch;
  int64_t tokens;      // at least 1
  int64_t channels;    // of a token
  int64_t slots;       // 1 to 64
  int64_t width;       // of a slot
  int64_t hidden;      // of the slot MLP
  int64_t heads;       // divides width
  int64_t iterations;  // at least 1
};

// Weights of one module, row-major as torch.nn.Linear has them; Pointer is `const float*` for weights and `float*`
// for their gradients.
template <typename Pointer>
struct SlotAttentionTensors {
  Pointer norm_inputs_weight;  // (channels)
  Pointer norm_inputs_bias;
  Pointer norm_slots_weight;  // (width)
  Pointer norm_slots_bias;
  Pointer norm_mlp_weight;  // (width)
  Pointer norm_mlp_bias;
  Pointer project_q;      // (width, width)
  Pointer project_k;      // (width, channels)
  Pointer project_v;      // (width, channels)
  Pointer gru_weight_ih;  // (3 width, width), gates in the order reset, update, new
  Pointer gru_weight_hh;  // (3 width, width)
  Pointer gru_bias_ih;    // (3 width)
  Pointer gru_bias_hh;
  Pointer mlp_in_weight;   // (hidden, width)
  Pointer mlp_in_bias;     // (hidden)
  Pointer mlp_out_weight;  // (width, hidden)
  Pointer mlp_out_bias;    // (width)
};

inline constexpr size_t kSlotAttentionWeights = 17;
static_assert(sizeof(SlotAttentionTensors<const float*>) == kSlotAttentionWeights * sizeof(const float*));

// Elements of each weight, in the order of SlotAttentionTensors.
inline std::array<int64_t, kSlotAttentionWeights> slot_attention_weight_sizes(const SlotAttentionShape& s) {
  const int64_t C = s.channels, D = s.width, H = s.hidden;
  return {C, C, D, D, D, D, D * D, D * C, D * C, 3 * D * D, 3 * D * D, 3 * D, 3 * D, H * D, H, D * H, D};
}

// Floats that the forward pass leaves for the backward pass; -1 when the shape is out of range.
int64_t slot_attention_saved_size(const SlotAttentionShape& shape);

// Slot attention with the key and value projections absorbed into the slots (derivation: kernels/slot_attention).
//
// inputs    (batch, tokens, channels) before the input norm
// slots     (batch, slots, width)
// active    (batch, slots), 0 = the slot gets no token; nullptr: all are active. An image needs one active slot.
// out_slots (batch, slots, width), attention (batch, slots, tokens) of the last iteration, summed over heads;
//           every element is written
// saved     slot_attention_saved_size(shape) floats for slot_attention_backward, or nullptr
// threads   at most this many are used; the result does not depend on it
//
// NaN and infinities in the input follow IEEE arithmetic and stay in their image. Error: kBadShape.
Result slot_attention(const float* inputs, const float* slots, const SlotAttentionTensors<const float*>& weights,
                      const uint8_t* active, const SlotAttentionShape& shape, float epsilon, int threads,
                      float* out_slots, float* attention, float* saved);

// Gradients of a loss with respect to inputs, slots and weights.
//
// saved          as written by slot_attention for the same arguments
// bi_level       gradient of the last iteration only, passed straight through to the initial slots
// pull_slots     gradient of the loss with respect to out_slots
// pull_attention ... to attention, or nullptr: zero
// to_inputs, to_slots and every tensor of `to` are overwritten; the result does not depend on `threads`
Result slot_attention_backward(const float* inputs, const SlotAttentionTensors<const float*>& weights,
                               const uint8_t* active, const SlotAttentionShape& shape, float epsilon, bool bi_level,
                               const float* saved, const float* pull_slots, const float* pull_attention,
                               int threads, float* to_inputs, float* to_slots,
                               const SlotAttentionTensors<float*>& to);

}  // namespace glass_fast
