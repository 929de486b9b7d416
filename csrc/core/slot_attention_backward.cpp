#include <vector>

#include "core/dense.h"
#include "core/parallel.h"
#include "core/slot_attention.h"
#include "core/slot_attention_layout.h"
#include "core/slot_attention_tokens.h"

namespace glass_fast {

namespace {

// Pulls on what the products with weights gave ("columns" parts) and the inputs of those products ("rows" parts),
// for all slots and iterations: the gradient of a weight is one product of the two, made when all are there.
struct Pulls {
  int64_t stride;  // of a columns part: steps * columns
  float *to_gates, *to_hidden_new, *to_updates, *to_queries, *to_hidden, *to_out, *to_normed, *normed_products,
      *to_mlp_normed, *mlp_products;                                    // columns parts
  float *normed, *updates, *slots, *mlp_normed, *hidden, *to_absorbed;  // rows parts
  float* norm_inputs;                                                   // (batch, 2, channels)
  Scratch scratch;

  Pulls(const SlotLayout& n, int64_t steps)
      : stride(steps * n.columns),
        scratch({{&to_gates, 3 * n.D * stride},
                 {&to_hidden_new, n.D * stride},
                 {&to_updates, n.D * stride},
                 {&to_queries, n.D * stride},
                 {&to_hidden, n.H * stride},
                 {&to_out, n.D * stride},
                 {&to_normed, n.D * stride},
                 {&normed_products, n.D * stride},
                 {&to_mlp_normed, n.D * stride},
                 {&mlp_products, n.D * stride},
                 {&normed, n.D * stride},
                 {&updates, n.D * stride},
                 {&slots, n.D * stride},
                 {&mlp_normed, n.D * stride},
                 {&hidden, n.H * stride},
                 {&to_absorbed, stride * n.heads * n.C},
                 {&norm_inputs, n.B * 2 * n.C}}) {}
};

struct Arguments {
  const float* inputs;
  const SlotAttentionTensors<const float*>& weights;
  const uint8_t* active;
  float epsilon;
  const float* saved;
  const float* pull_slots;
  const float* pull_attention;
  int64_t steps;  // iterations that get a gradient, the last ones
  float* to_inputs;
  float* to_slots;
};

// Backward pass of one group of images, but for the weights; one object per worker.
class Backward {
 public:
  Backward(const SlotLayout& n, const Arguments& a, Pulls& pulls, int64_t images)
      : n_(n),
        a_(a),
        w_(a.weights),
        at_(n),
        p_(pulls),
        most_(n, 0, images),
        scratch_({{&pull_, n.D * most_.width},
                  {&slots_, n.D * most_.width},
                  {&next_, n.D * most_.width},
                  {&normed_, n.D * most_.width},
                  {&to_normed_, n.D * most_.width},
                  {&products_, n.D * most_.width},
                  {&gates_, 3 * n.D * most_.width},
                  {&hidden_new_, n.D * most_.width},
                  {&to_gates_, 4 * n.D * most_.width},
                  {&hidden_, n.H * most_.width},
                  {&to_hidden_, n.H * most_.width},
                  {&to_reads_, n.heads * n.C * most_.width},
                  {&to_absorbed_, n.heads * n.C * most_.width},
                  {&coefficients_, images * a.steps * 2 * n.queries * n.N},
                  {&terms_, images * a.steps * 2 * n.queries * n.C},
                  {&to_absorbed_rows_, n.queries * n.C},
                  {&tile_, n.queries * kTokenTile},
                  {&to_tokens_, kTokenTile * n.C},
                  {&pull_means_, n.queries},
                  {&pull_sums_, n.queries},
                  {&ones_, n.queries}}),
        normed_tokens_(n.queries, n.C) {
    std::fill(ones_, ones_ + n.queries, 1.0f);
  }

  void run(const SlotGroup& group) {
    const int64_t D = n_.D, width = group.width;
    std::memset(pull_, 0, sizeof(float) * static_cast<size_t>(D * width));
    std::memset(to_absorbed_, 0, sizeof(float) * static_cast<size_t>(n_.heads * n_.C * width));
    for (int64_t i = 0; i < group.images; ++i)
      columns_from_rows(a_.pull_slots + (group.first + i) * n_.S * D, n_.S, 1, D, pull_ + i * n_.padded, width);
    for (int64_t t = n_.T - 1; t >= n_.T - a_.steps; --t) step(group, t);
    for (int64_t i = 0; i < group.images; ++i) {
      rows_from_columns(pull_ + i * n_.padded, width, n_.S, 1, D, a_.to_slots + (group.first + i) * n_.S * D);
      finish_tokens(group.first + i, i);
    }
  }

 private:
  // One iteration back: pull_ is the pull on the state after iteration t, and becomes that on the state before it.
  void step(const SlotGroup& group, int64_t t) {
    const int64_t D = n_.D, H = n_.H, C = n_.C, width = group.width, part = D * width;
    const int64_t k = t - (n_.T - a_.steps);  // number of the step in `p_`
    const auto kept = [&](int64_t offset, int64_t rows, float* compact) {
      group.read(a_.saved + offset + t * n_.columns, at_.stride, rows, compact);
    };
    const auto keep = [&](const float* compact, int64_t rows, float* columns) {
      group.write(compact, rows, columns + k * n_.columns, p_.stride);
    };
    // Inputs of the weights as rows, in the order of the columns; padding columns become rows, too.
    const auto keep_rows = [&](const float* compact, int64_t features, float* rows) {
      float* first = rows + (k * n_.columns + group.column) * features;
      for (int64_t f = 0; f < features; ++f)
        for (int64_t c = 0; c < group.real; ++c) first[c * features + f] = compact[f * width + c];
    };
    kept(at_.slots, D, slots_);
    kept(at_.gates, 3 * D, gates_);
    kept(at_.hidden_new, D, hidden_new_);
    kept(at_.hidden, H, hidden_);

    // MLP and its norm.
    for (int64_t i = 0; i < part; ++i)
      next_[i] = gates_[2 * part + i] + gates_[part + i] * (slots_[i] - gates_[2 * part + i]);
    d_.layer_norm_columns(next_, D, width, w_.norm_mlp_weight, w_.norm_mlp_bias, normed_);
    keep_rows(normed_, D, p_.mlp_normed);
    keep_rows(hidden_, H, p_.hidden);
    keep(pull_, D, p_.to_out);
    d_.columns_product(w_.mlp_out_weight, 1, H, H, D, pull_, width, nullptr, false, to_hidden_);
    for (int64_t i = 0; i < H * width; ++i) to_hidden_[i] = hidden_[i] > 0 ? to_hidden_[i] : 0;
    keep(to_hidden_, H, p_.to_hidden);
    d_.columns_product(w_.mlp_in_weight, 1, D, D, H, to_hidden_, width, nullptr, false, to_normed_);
    d_.layer_norm_columns_backward(next_, to_normed_, D, width, w_.norm_mlp_weight, pull_, products_);
    keep(to_normed_, D, p_.to_mlp_normed);
    keep(products_, D, p_.mlp_products);

    // GRU. to_gates_ holds the pulls on reset, update and new of the input gates, then that on the hidden new gate.
    float *to_updates = to_normed_, *to_hidden_new = to_gates_ + 3 * part;
    d_.gru_columns_backward(gates_, hidden_new_, slots_, D, width, pull_, to_gates_, to_hidden_new);
    keep(to_gates_, 3 * D, p_.to_gates);
    keep(to_hidden_new, D, p_.to_hidden_new);
    d_.columns_product(w_.gru_weight_ih, 1, D, D, 3 * D, to_gates_, width, nullptr, false, to_updates);
    d_.columns_product(w_.gru_weight_hh, 1, D, D, 2 * D, to_gates_, width, nullptr, true, pull_);
    d_.columns_product(w_.gru_weight_hh + 2 * D * D, 1, D, D, D, to_hidden_new, width, nullptr, true, pull_);
    keep(to_updates, D, p_.to_updates);
    keep_rows(slots_, D, p_.slots);
    kept(at_.updates, D, next_);
    keep_rows(next_, D, p_.updates);

    // Value projection and the tokens.
    for (int64_t h = 0; h < n_.heads; ++h)
      d_.columns_product(w_.project_v + h * n_.head * C, 1, C, C, n_.head, to_updates + h * n_.head * width, width,
                         nullptr, false, to_reads_ + h * C * width);
    for (int64_t i = 0; i < group.images; ++i) stream(group, i, t, k);

    // Query and key projection, and the norm of the slots.
    float* to_queries = next_;
    for (int64_t h = 0; h < n_.heads; ++h)
      d_.columns_product(w_.project_k + h * n_.head * C, C, 1, n_.head, C, to_absorbed_ + h * C * width, width,
                         nullptr, false, to_queries + h * n_.head * width);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(D));
    for (int64_t i = 0; i < part; ++i) to_queries[i] *= scale;
    keep(to_queries, D, p_.to_queries);
    d_.columns_product(w_.project_q, 1, D, D, D, to_queries, width, nullptr, false, to_normed_);
    d_.layer_norm_columns(slots_, D, width, w_.norm_slots_weight, w_.norm_slots_bias, normed_);
    keep_rows(normed_, D, p_.normed);
    d_.layer_norm_columns_backward(slots_, to_normed_, D, width, w_.norm_slots_weight, pull_, products_);
    keep(to_normed_, D, p_.to_normed);
    keep(products_, D, p_.normed_products);
  }

  // Second reading of the tokens of image `first + i`: pulls on the logits, and from them on the absorbed queries.
  // What the tokens themselves get is kept as coefficients: one product at the end makes it for all iterations.
  void stream(const SlotGroup& group, int64_t i, int64_t t, int64_t k) {
    const int64_t queries = n_.queries, C = n_.C, N = n_.N, image = group.first + i;
    normed_tokens_.image(a_.inputs + image * N * C, a_.saved + at_.means + image * N,
                         a_.saved + at_.scales + image * N, w_.norm_inputs_weight, w_.norm_inputs_bias);
    const float* attention = a_.saved + at_.attention + (image * n_.T + t) * queries * N;
    const float* totals = a_.saved + at_.totals + (image * n_.T + t) * queries;
    const int64_t row = (t * n_.columns + image * n_.padded) * n_.heads;
    const float* reads = a_.saved + at_.reads + row * C;
    float* to_reads = terms_ + (i * a_.steps + k) * 2 * queries * C;
    float* absorbed = to_reads + queries * C;
    float* to_reads_share = coefficients_ + (i * a_.steps + k) * 2 * queries * N;
    float* to_logits = to_reads_share + queries * N;
    rows_from_columns(to_reads_ + i * n_.padded, group.width, n_.S, n_.heads, C, to_reads);
    std::memcpy(absorbed, a_.saved + at_.absorbed + row * C, static_cast<size_t>(queries * C) * sizeof(float));
    std::memset(to_absorbed_rows_, 0, static_cast<size_t>(queries * C) * sizeof(float));

    // Normalising over tokens: each token's pull loses the mean, which is read . pull, so no pass is needed for it.
    for (int64_t q = 0; q < queries; ++q) {
      float mean = 0;
      for (int64_t c = 0; c < C; ++c) mean += reads[q * C + c] * to_reads[q * C + c];
      pull_means_[q] = mean;
    }
    normed_tokens_.fold(to_reads);
    const float* given = t == n_.T - 1 && a_.pull_attention ? a_.pull_attention + image * n_.S * N : nullptr;
    for (int64_t first = 0; first < N; first += kTokenTile) {
      const int64_t count = std::min(kTokenTile, N - first);
      normed_tokens_.dot(first, count, tile_);
      d_.attend_backward(normed_tokens_.tile(first, count), attention + first, given ? given + first : nullptr,
                         n_.heads, N, normed_tokens_.offsets(), pull_means_, totals, a_.epsilon, tile_,
                         to_reads_share + first, normed_tokens_.weighted(), normed_tokens_.partial_sums());
      normed_tokens_.accumulate(first, count, to_absorbed_rows_);
      for (int64_t q = 0; q < queries; ++q)
        std::memcpy(to_logits + q * N + first, tile_ + q * kTokenTile, static_cast<size_t>(count) * sizeof(float));
    }
    normed_tokens_.sums(pull_sums_);
    normed_tokens_.finish(pull_sums_, ones_, to_absorbed_rows_);
    columns_from_rows(to_absorbed_rows_, n_.S, n_.heads, C, to_absorbed_ + i * n_.padded, group.width);
    float* kept = p_.to_absorbed + (k * n_.columns + image * n_.padded) * n_.heads * C;
    const size_t real = static_cast<size_t>(queries * C), all = static_cast<size_t>(n_.padded * n_.heads * C);
    std::memcpy(kept, to_absorbed_rows_, real * sizeof(float));
    std::memset(kept + real, 0, (all - real) * sizeof(float));
  }

  // Gradient of the tokens of an image from the kept coefficients, and through the input norm.
  void finish_tokens(int64_t image, int64_t i) {
    const int64_t C = n_.C, N = n_.N, count = a_.steps * 2 * n_.queries;
    const float* terms = terms_ + i * count * C;
    const float* coefficients = coefficients_ + i * count * N;
    float* norm = p_.norm_inputs + image * 2 * C;
    std::memset(norm, 0, static_cast<size_t>(2 * C) * sizeof(float));
    for (int64_t first = 0; first < N; first += kTokenTile) {
      const int64_t rows = std::min(kTokenTile, N - first);
      d_.rows_combine(coefficients + first, 1, N, terms, C, count, C, rows, to_tokens_);
      d_.layer_norm_rows_backward(a_.inputs + (image * N + first) * C, to_tokens_, rows, C, w_.norm_inputs_weight,
                                  a_.to_inputs + (image * N + first) * C, norm, norm + C);
    }
  }

  const Dense& d_ = dense();
  const SlotLayout& n_;
  const Arguments& a_;
  const SlotAttentionTensors<const float*>& w_;
  const SavedLayout at_;
  Pulls& p_;
  const SlotGroup most_;
  float *pull_, *slots_, *next_, *normed_, *to_normed_, *products_, *gates_, *hidden_new_, *to_gates_, *hidden_,
      *to_hidden_, *to_reads_, *to_absorbed_, *coefficients_, *terms_, *to_absorbed_rows_, *tile_, *to_tokens_,
      *pull_means_, *pull_sums_, *ones_;
  const Scratch scratch_;
  NormedTokens normed_tokens_;
};

// Gradient of one weight matrix, or of a band of it: out[o] = sum over slots r of pull[o][r] * input[r].
struct Product {
  float* out;
  int64_t rows, width;
  const float* pull;
  int64_t pull_stride;
  const float* input;
  int64_t input_stride;
};

void weight_gradients(const SlotLayout& n, const Arguments& a, const Pulls& p, int threads,
                      const SlotAttentionTensors<float*>& to) {
  const SavedLayout at(n);
  const int64_t D = n.D, H = n.H, C = n.C, skipped = (n.T - a.steps) * n.columns;
  std::vector<Product> products = {
      {to.project_q, D, D, p.to_queries, p.stride, p.normed, D},
      {to.gru_weight_ih, 3 * D, D, p.to_gates, p.stride, p.updates, D},
      {to.gru_weight_hh, 2 * D, D, p.to_gates, p.stride, p.slots, D},
      {to.gru_weight_hh + 2 * D * D, D, D, p.to_hidden_new, p.stride, p.slots, D},
      {to.mlp_in_weight, H, D, p.to_hidden, p.stride, p.mlp_normed, D},
      {to.mlp_out_weight, D, H, p.to_out, p.stride, p.hidden, H},
  };
  for (int64_t h = 0; h < n.heads; ++h) {
    const int64_t row = h * n.head;
    products.push_back({to.project_k + row * C, n.head, C, a.saved + at.queries + row * at.stride + skipped,
                        at.stride, p.to_absorbed + h * C, n.heads * C});
    products.push_back({to.project_v + row * C, n.head, C, p.to_updates + row * p.stride, p.stride,
                        a.saved + at.reads + (skipped * n.heads + h) * C, n.heads * C});
  }
  constexpr int64_t kBand = 24;  // rows of a task
  struct Task {
    const Product* product;
    int64_t first;
  };
  std::vector<Task> tasks;
  for (const Product& product : products)
    for (int64_t first = 0; first < product.rows; first += kBand) tasks.push_back({&product, first});
  parallel_tasks(static_cast<int64_t>(tasks.size()), threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Product& m = *tasks[static_cast<size_t>(i)].product;
      const int64_t first = tasks[static_cast<size_t>(i)].first;
      dense().rows_combine(m.pull + first * m.pull_stride, m.pull_stride, 1, m.input, m.input_stride, p.stride,
                           m.width, std::min(kBand, m.rows - first), m.out + first * m.width);
    }
  });

  const auto row_sums = [&](const float* columns, int64_t rows, float* out) {
    for (int64_t r = 0; r < rows; ++r) {
      float total = 0;
      for (int64_t c = 0; c < p.stride; ++c) total += columns[r * p.stride + c];
      out[r] = total;
    }
  };
  row_sums(p.to_gates, 3 * D, to.gru_bias_ih);
  row_sums(p.to_gates, 2 * D, to.gru_bias_hh);
  row_sums(p.to_hidden_new, D, to.gru_bias_hh + 2 * D);
  row_sums(p.to_hidden, H, to.mlp_in_bias);
  row_sums(p.to_out, D, to.mlp_out_bias);
  row_sums(p.normed_products, D, to.norm_slots_weight);
  row_sums(p.to_normed, D, to.norm_slots_bias);
  row_sums(p.mlp_products, D, to.norm_mlp_weight);
  row_sums(p.to_mlp_normed, D, to.norm_mlp_bias);
  std::fill(to.norm_inputs_weight, to.norm_inputs_weight + C, 0.0f);
  std::fill(to.norm_inputs_bias, to.norm_inputs_bias + C, 0.0f);
  for (int64_t image = 0; image < n.B; ++image)
    for (int64_t c = 0; c < C; ++c) {
      to.norm_inputs_weight[c] += p.norm_inputs[image * 2 * C + c];
      to.norm_inputs_bias[c] += p.norm_inputs[(image * 2 + 1) * C + c];
    }
}

}  // namespace

Result slot_attention_backward(const float* inputs, const SlotAttentionTensors<const float*>& weights,
                               const uint8_t* active, const SlotAttentionShape& shape, float epsilon, bool bi_level,
                               const float* saved, const float* pull_slots, const float* pull_attention,
                               int threads, float* to_inputs, float* to_slots,
                               const SlotAttentionTensors<float*>& to) {
  if (!SlotLayout::fits(shape)) return {Status::kBadShape};
  const SlotLayout n(shape);
  const Arguments a{inputs,    weights, active, epsilon, saved, pull_slots, pull_attention, bi_level ? 1 : n.T,
                    to_inputs, to_slots};
  Pulls pulls(n, a.steps);
  const int64_t images = n.group_images(threads);
  parallel_tasks((n.B + images - 1) / images, threads, [&](int, int64_t first, int64_t last) {
    Backward backward(n, a, pulls, images);
    for (int64_t g = first; g < last; ++g)
      backward.run(SlotGroup(n, g * images, std::min(images, n.B - g * images)));
  });
  weight_gradients(n, a, pulls, threads, to);
  return {};
}

}  // namespace glass_fast
