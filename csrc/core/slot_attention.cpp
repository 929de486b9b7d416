#include "core/slot_attention.h"

#include <vector>

#include "core/dense.h"
#include "core/parallel.h"
#include "core/slot_attention_layout.h"
#include "core/slot_attention_tokens.h"

namespace glass_fast {

namespace {

// Forward pass of one group of images; one object per worker.
class Forward {
 public:
  Forward(const SlotLayout& n, const SlotAttentionTensors<const float*>& weights, float epsilon, int64_t images)
      : n_(n),
        w_(weights),
        epsilon_(epsilon),
        most_(n, 0, images),
        scratch_({{&means_, images * n.N},
                  {&scales_, images * n.N},
                  {&slots_, n.D * most_.width},
                  {&normed_, n.D * most_.width},
                  {&queries_, n.D * most_.width},
                  {&absorbed_, n.heads * n.C * most_.width},
                  {&reads_, n.heads * n.C * most_.width},
                  {&gates_, 3 * n.D * most_.width},
                  {&hidden_gates_, 3 * n.D * most_.width},
                  {&hidden_, n.H * most_.width},
                  {&query_rows_, n.queries * n.C},
                  {&read_rows_, n.queries * n.C},
                  {&attention_, n.queries * kTokenTile},
                  {&totals_, n.queries},
                  {&factors_, n.queries}}),
        active_queries_(static_cast<size_t>(n.queries)),
        normed_tokens_(n.queries, n.C) {}

  void run(const SlotGroup& group, const float* inputs, const float* slots, const uint8_t* active, float* out_slots,
           float* attention, float* saved) {
    const SavedLayout at(n_);
    const int64_t width = group.width;
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(n_.D));
    const float* tokens = inputs + group.first * n_.N * n_.C;
    std::memset(slots_, 0, sizeof(float) * static_cast<size_t>(n_.D * width));
    std::memset(reads_, 0, sizeof(float) * static_cast<size_t>(n_.heads * n_.C * width));  // also its padding
    for (int64_t i = 0; i < group.images; ++i)
      columns_from_rows(slots + (group.first + i) * n_.S * n_.D, n_.S, 1, n_.D, slots_ + i * n_.padded, width);

    for (int64_t t = 0; t < n_.T; ++t) {
      const bool last = t == n_.T - 1;
      const auto keep = [&](int64_t part, const float* compact, int64_t rows) {
        if (saved) group.write(compact, rows, saved + part + t * n_.columns, at.stride);
      };
      keep(at.slots, slots_, n_.D);
      d_.layer_norm_columns(slots_, n_.D, width, w_.norm_slots_weight, w_.norm_slots_bias, normed_);
      d_.columns_product(w_.project_q, n_.D, 1, n_.D, n_.D, normed_, width, nullptr, false, queries_);
      for (int64_t k = 0; k < n_.D * width; ++k) queries_[k] *= scale;
      keep(at.queries, queries_, n_.D);
      for (int64_t h = 0; h < n_.heads; ++h)
        d_.columns_product(w_.project_k + h * n_.head * n_.C, 1, n_.C, n_.C, n_.head,
                           queries_ + h * n_.head * width, width, nullptr, false, absorbed_ + h * n_.C * width);
      for (int64_t i = 0; i < group.images; ++i) {
        const int64_t image = group.first + i;
        rows_from_columns(absorbed_ + i * n_.padded, width, n_.S, n_.heads, n_.C, query_rows_);
        float* maps = saved ? saved + at.attention + (image * n_.T + t) * n_.queries * n_.N : nullptr;
        normed_tokens_.image(tokens + i * n_.N * n_.C, means_ + i * n_.N, scales_ + i * n_.N, w_.norm_inputs_weight,
                             w_.norm_inputs_bias);
        stream(t == 0 ? tokens + i * n_.N * n_.C : nullptr, i, active ? active + image * n_.S : nullptr, maps,
               last ? attention + image * n_.S * n_.N : nullptr);
        columns_from_rows(read_rows_, n_.S, n_.heads, n_.C, reads_ + i * n_.padded, width);
        if (saved) {
          std::memcpy(saved + at.totals + (image * n_.T + t) * n_.queries, totals_,
                      static_cast<size_t>(n_.queries) * sizeof(float));
          save_rows(query_rows_, saved + at.absorbed, image, t);
          save_rows(read_rows_, saved + at.reads, image, t);
        }
      }
      update(group, keep, at);
    }
    if (saved) {
      const size_t bytes = static_cast<size_t>(group.images * n_.N) * sizeof(float);
      std::memcpy(saved + at.means + group.first * n_.N, means_, bytes);
      std::memcpy(saved + at.scales + group.first * n_.N, scales_, bytes);
    }
    for (int64_t i = 0; i < group.images; ++i)
      rows_from_columns(slots_ + i * n_.padded, width, n_.S, 1, n_.D, out_slots + (group.first + i) * n_.S * n_.D);
  }

 private:
  // Reads the tokens of one image once: attention of a tile, and the tile's part of every slot's weighted sum.
  // `fresh`: its tokens, when their moments are not known yet.
  void stream(const float* fresh, int64_t i, const uint8_t* active, float* maps, float* attention) {
    const int64_t queries = n_.queries;
    if (active && n_.heads > 1) {
      for (int64_t q = 0; q < queries; ++q) active_queries_[static_cast<size_t>(q)] = active[q / n_.heads];
      active = active_queries_.data();
    }
    std::memset(read_rows_, 0, static_cast<size_t>(queries * n_.C) * sizeof(float));
    normed_tokens_.fold(query_rows_);
    for (int64_t first = 0; first < n_.N; first += kTokenTile) {
      const int64_t count = std::min(kTokenTile, n_.N - first);
      if (fresh)
        d_.row_moments(fresh + first * n_.C, count, n_.C, means_ + i * n_.N + first, scales_ + i * n_.N + first);
      normed_tokens_.dot(first, count, attention_);
      d_.attend(normed_tokens_.tile(first, count), active, normed_tokens_.offsets(), epsilon_, attention_,
                normed_tokens_.weighted(), normed_tokens_.partial_sums());
      normed_tokens_.accumulate(first, count, read_rows_);
      for (int64_t q = 0; q < queries && (maps || attention); ++q) {
        const float* value = attention_ + q * kTokenTile;
        if (maps) std::memcpy(maps + q * n_.N + first, value, static_cast<size_t>(count) * sizeof(float));
        if (!attention) continue;
        float* out = attention + q / n_.heads * n_.N + first;
        for (int64_t i = 0; i < count; ++i) out[i] = q % n_.heads == 0 ? value[i] : out[i] + value[i];
      }
    }
    normed_tokens_.sums(totals_);
    for (int64_t q = 0; q < queries; ++q) factors_[q] = 1.0f / totals_[q];
    normed_tokens_.finish(totals_, factors_, read_rows_);
  }

  // What the slots read -> value projection, GRU, MLP; slots_ becomes the next state.
  template <typename Keep>
  void update(const SlotGroup& group, const Keep& keep, const SavedLayout& at) {
    const int64_t width = group.width, D = n_.D, H = n_.H;
    float* updates = normed_;  // the normed slots are not needed any more
    for (int64_t h = 0; h < n_.heads; ++h)
      d_.columns_product(w_.project_v + h * n_.head * n_.C, n_.C, 1, n_.head, n_.C, reads_ + h * n_.C * width,
                         width, nullptr, false, updates + h * n_.head * width);
    keep(at.updates, updates, D);
    d_.columns_product(w_.gru_weight_ih, D, 1, 3 * D, D, updates, width, w_.gru_bias_ih, false, gates_);
    d_.columns_product(w_.gru_weight_hh, D, 1, 3 * D, D, slots_, width, w_.gru_bias_hh, false, hidden_gates_);
    d_.gru_columns(gates_, hidden_gates_, D, width, slots_);
    keep(at.gates, gates_, 3 * D);
    keep(at.hidden_new, hidden_gates_ + 2 * D * width, D);
    d_.layer_norm_columns(slots_, D, width, w_.norm_mlp_weight, w_.norm_mlp_bias, normed_);
    d_.columns_product(w_.mlp_in_weight, D, 1, H, D, normed_, width, w_.mlp_in_bias, false, hidden_);
    for (int64_t k = 0; k < H * width; ++k) hidden_[k] = hidden_[k] < 0 ? 0 : hidden_[k];  // NaN stays
    keep(at.hidden, hidden_, H);
    d_.columns_product(w_.mlp_out_weight, H, 1, D, H, hidden_, width, w_.mlp_out_bias, true, slots_);
  }

  // Rows of one image and iteration; the rows of padding columns become 0.
  void save_rows(const float* rows, float* part, int64_t image, int64_t t) const {
    float* first = part + (t * n_.columns + image * n_.padded) * n_.heads * n_.C;
    const size_t real = static_cast<size_t>(n_.queries * n_.C),
                 all = static_cast<size_t>(n_.padded * n_.heads * n_.C);
    std::memcpy(first, rows, real * sizeof(float));
    std::memset(first + real, 0, (all - real) * sizeof(float));
  }

  const Dense& d_ = dense();
  const SlotLayout& n_;
  const SlotAttentionTensors<const float*>& w_;
  const float epsilon_;
  const SlotGroup most_;
  float *means_, *scales_, *slots_, *normed_, *queries_, *absorbed_, *reads_, *gates_, *hidden_gates_, *hidden_,
      *query_rows_, *read_rows_, *attention_, *totals_, *factors_;
  const Scratch scratch_;
  std::vector<uint8_t> active_queries_;
  NormedTokens normed_tokens_;
};

}  // namespace

int64_t slot_attention_saved_size(const SlotAttentionShape& shape) {
  return SlotLayout::fits(shape) ? SavedLayout(SlotLayout(shape)).size : -1;
}

Result slot_attention(const float* inputs, const float* slots, const SlotAttentionTensors<const float*>& weights,
                      const uint8_t* active, const SlotAttentionShape& shape, float epsilon, int threads,
                      float* out_slots, float* attention, float* saved) {
  if (!SlotLayout::fits(shape)) return {Status::kBadShape};
  const SlotLayout n(shape);
  const int64_t images = n.group_images(threads);
  parallel_tasks((n.B + images - 1) / images, threads, [&](int, int64_t first, int64_t last) {
    Forward forward(n, weights, epsilon, images);
    for (int64_t g = first; g < last; ++g)
      forward.run(SlotGroup(n, g * images, std::min(images, n.B - g * images)), inputs, slots, active, out_slots,
                  attention, saved);
  });
  return {};
}

}  // namespace glass_fast
