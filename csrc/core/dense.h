#pragma once

#include <cstdint>

namespace glass_fast {

// Small dense products and row-wise functions, compiled once per instruction set (dense_kernels.inc) and chosen at
// run time. Matrices are row-major float32; no pointer may overlap an output. Every sum has a fixed order that
// depends on sizes and instruction set only.
//
// "Columns" matrices hold one slot per column, (features, columns), `columns` a multiple of kColumnAlign: what a
// slot needs per feature is then a plain vector operation, and no weight has to be transposed or packed.
inline constexpr int64_t kColumnAlign = 16;

// A sum over tokens is kept as this many partial sums, which lie side by side.
inline constexpr int64_t kPartialSums = 16;

// A tile of `count` rows (slots) and `tokens` <= stride columns, with the scale of each token.
struct AttendTile {
  int64_t count, tokens, stride;
  const float* scales;
};

struct Dense {
  const char* name;

  // Mean and 1 / sqrt(variance + 1e-5) of `rows` rows of `width`.
  void (*row_moments)(const float* x, int64_t rows, int64_t width, float* means, float* scales);
  // Gradient of LayerNorm(x[n]) * weight + bias: to_x is overwritten, to_weight and to_bias (width) are added to.
  void (*layer_norm_rows_backward)(const float* x, const float* pull, int64_t rows, int64_t width,
                                   const float* weight, float* to_x, float* to_weight, float* to_bias);
  // out[q * out_stride + n] = (x[n] - means[n]) . queries[q], for `rows` rows and `count` queries of `width`; means
  // may be nullptr: 0.
  void (*rows_dot)(const float* x, int64_t rows, int64_t width, const float* means, const float* queries,
                   int64_t count, float* out, int64_t out_stride);
  // sums[q] += sum over n of coefficients[q * stride + n] * (x[n] - means[n]); sums (count, width), means needed.
  void (*rows_accumulate)(const float* x, int64_t rows, int64_t width, const float* means,
                          const float* coefficients, int64_t stride, int64_t count, float* sums);
  // out[n] = sum over t of coefficients[n * row_step + t * term_step] * terms[t * term_stride], n < rows, t <
  // count; out (rows, width) contiguous.
  void (*rows_combine)(const float* coefficients, int64_t row_step, int64_t term_step, const float* terms,
                       int64_t term_stride, int64_t count, int64_t width, int64_t rows, float* out);
  // Attention of a tile of tokens; tile (count, stride) holds dot products, and attention afterwards.
  //   logits = tile * scales + offsets; attention = softmax over the rows; inactive rows get 0
  //   weighted = (attention + epsilon) * scales; totals (count, kPartialSums) += attention + epsilon
  void (*attend)(const AttendTile& shape, const uint8_t* active, const float* offsets, float epsilon, float* tile,
                 float* weighted, float* totals);
  // Its gradient through the softmax; tile holds dot products of tokens and pulls, and pulls on the logits
  // afterwards.
  //   shares[q] = (attention + epsilon) / totals; pull = (tile * scales + offsets - means) / totals + given
  //   tile = attention * (pull - sum over rows of attention * pull)
  //   weighted = tile * scales; sums (count, kPartialSums) += tile
  // attention, shares and given have rows of `row` floats; given holds one row for `heads` rows of the tile, or is
  // nullptr: 0.
  void (*attend_backward)(const AttendTile& shape, const float* attention, const float* given, int64_t heads,
                          int64_t row, const float* offsets, const float* means, const float* totals, float epsilon,
                          float* tile, float* shares, float* weighted, float* sums);

  // out[o] = bias[o] + sum over k < depth of weight[o * out_step + k * in_step] * x[k]; bias may be nullptr;
  // `add`: added to what is there. x (depth, columns), out (outs, columns).
  void (*columns_product)(const float* weight, int64_t out_step, int64_t in_step, int64_t outs, int64_t depth,
                          const float* x, int64_t columns, const float* bias, bool add, float* out);
  // LayerNorm down each column, eps 1e-5.
  void (*layer_norm_columns)(const float* x, int64_t rows, int64_t columns, const float* weight, const float* bias,
                             float* out);
  // to_x += gradient of layer_norm_columns; products = pull * normalised x, whose sums are the weight's gradient.
  void (*layer_norm_columns_backward)(const float* x, const float* pull, int64_t rows, int64_t columns,
                                      const float* weight, float* to_x, float* products);
  // GRU step (torch.nn.GRUCell). gates_in, gates_hidden (3 width, columns); on return gates_in holds reset, update
  // and new, and slots the new state.
  void (*gru_columns)(float* gates_in, const float* gates_hidden, int64_t width, int64_t columns, float* slots);
  // Gradient of gru_columns. gates (3 width, columns) as gru_columns leaves them, hidden_new: third part of
  // gates_hidden, slots: state before. On return to_gates holds the pulls on reset, update and new of gates_in,
  // to_hidden_new that on the third part of gates_hidden, and pull the part that goes to the old state directly.
  void (*gru_columns_backward)(const float* gates, const float* hidden_new, const float* slots, int64_t width,
                               int64_t columns, float* pull, float* to_gates, float* to_hidden_new);
};

// The table for instruction_set().
const Dense& dense();

}  // namespace glass_fast
