// Torch operators over the core, through the stable ABI only: one binary serves torch 2.10 and later, and the
// file compiles in seconds.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "core/mask_labels.h"
#include "core/matching.h"
#include "core/propagation.h"
#include "core/slot_attention.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void raise_unless_ok(const char* op, const glass_fast::Result& result) {
  STD_TORCH_CHECK(result.ok(), glass_fast::describe(op, result));
}

int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

Tensor matching(const Tensor& cost, const std::optional<Tensor>& counts) {
  STD_TORCH_CHECK(cost.dim() == 3, "matching: cost must have shape (batch, slots, segments)");
  const ScalarType dtype = cost.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "matching: cost must be float32 or float64");
  const int64_t batch = cost.size(0), slots = cost.size(1), segments = cost.size(2);
  const Tensor dense = torch::stable::contiguous(cost);
  std::optional<Tensor> dense_counts;
  const int64_t* count_data = nullptr;
  if (counts.has_value()) {
    STD_TORCH_CHECK(counts->dim() == 1 && counts->size(0) == batch && counts->scalar_type() == ScalarType::Long &&
                        counts->is_cpu(),
                    "matching: counts must be an int64 tensor of shape (batch,) on the CPU");
    dense_counts = torch::stable::contiguous(*counts);
    count_data = dense_counts->const_data_ptr<int64_t>();
  }
  Tensor match = torch::stable::new_empty(cost, {batch, segments}, ScalarType::Long);
  int64_t* match_data = match.mutable_data_ptr<int64_t>();
  const glass_fast::Result result = dtype == ScalarType::Float
                                        ? glass_fast::matching(dense.const_data_ptr<float>(), count_data, batch,
                                                               slots, segments, threads(), match_data)
                                        : glass_fast::matching(dense.const_data_ptr<double>(), count_data, batch,
                                                               slots, segments, threads(), match_data);
  raise_unless_ok("matching", result);
  return match;
}

Tensor mask_labels(const Tensor& maps, const Tensor& labels, int64_t height, int64_t width, double threshold,
                   double uncertain_threshold) {
  STD_TORCH_CHECK(maps.dim() == 4 && maps.scalar_type() == ScalarType::Float,
                  "mask_labels: maps must be float32 of shape (batch, classes, map height, map width)");
  STD_TORCH_CHECK(labels.dim() == 2 && labels.scalar_type() == ScalarType::Byte && labels.is_cpu() &&
                      labels.size(0) == maps.size(0) && labels.size(1) == maps.size(1),
                  "mask_labels: labels must be a uint8 tensor of shape (batch, classes) on the CPU");
  const Tensor dense_maps = torch::stable::contiguous(maps);
  const Tensor dense_labels = torch::stable::contiguous(labels);
  const glass_fast::MaskLabelsShape shape{maps.size(0), maps.size(1), maps.size(2), maps.size(3), height, width};
  STD_TORCH_CHECK(height > 0 && width > 0, "mask_labels: height and width must be at least 1");
  Tensor out = torch::stable::new_empty(maps, {shape.batch, height, width}, ScalarType::Byte);
  raise_unless_ok("mask_labels", glass_fast::mask_labels(
                                     dense_maps.const_data_ptr<float>(), dense_labels.const_data_ptr<uint8_t>(),
                                     shape, static_cast<float>(threshold), static_cast<float>(uncertain_threshold),
                                     threads(), out.mutable_data_ptr<uint8_t>()));
  return out;
}

Tensor propagation(const Tensor& self_map, const Tensor& class_maps, int64_t tau) {
  STD_TORCH_CHECK(self_map.dim() == 3 && class_maps.dim() == 3 && self_map.scalar_type() == ScalarType::Float &&
                      class_maps.scalar_type() == ScalarType::Float && self_map.size(0) == class_maps.size(0) &&
                      self_map.size(1) == self_map.size(2) && self_map.size(1) == class_maps.size(1),
                  "propagation: expected float32 (batch, tokens, tokens) and (batch, tokens, classes)");
  const Tensor dense_self = torch::stable::contiguous(self_map), dense_maps = torch::stable::contiguous(class_maps);
  const glass_fast::PropagationShape shape{class_maps.size(0), class_maps.size(1), class_maps.size(2), tau};
  Tensor out = torch::stable::new_empty(dense_maps, {shape.batch, shape.tokens, shape.classes});
  raise_unless_ok("propagation",
                  glass_fast::propagation(dense_self.const_data_ptr<float>(), dense_maps.const_data_ptr<float>(),
                                          shape, threads(), out.mutable_data_ptr<float>()));
  return out;
}

constexpr size_t kWeights = glass_fast::kSlotAttentionWeights;
using WeightPointers = glass_fast::SlotAttentionTensors<const float*>;
using GradientPointers = glass_fast::SlotAttentionTensors<float*>;

glass_fast::SlotAttentionShape slot_attention_shape(const Tensor& inputs, int64_t slots,
                                                    const std::vector<Tensor>& weights, int64_t iterations,
                                                    int64_t heads) {
  STD_TORCH_CHECK(inputs.dim() == 3 && weights.size() == kWeights,
                  "slot_attention: expected inputs (batch, tokens, channels) and 17 weights");
  const int64_t channels = inputs.size(2), width = weights[2].numel(), hidden = weights[14].numel();
  const glass_fast::SlotAttentionShape shape{inputs.size(0), inputs.size(1), channels, slots,
                                             width,          hidden,         heads,    iterations};
  const auto sizes = glass_fast::slot_attention_weight_sizes(shape);
  for (size_t i = 0; i < kWeights; ++i)
    STD_TORCH_CHECK(weights[i].numel() == sizes[i] && weights[i].scalar_type() == ScalarType::Float,
                    "slot_attention: weight ", i, " has ", weights[i].numel(), " elements; expected ", sizes[i],
                    " of float32");
  return shape;
}

// Contiguous copies of the weights (none where they are contiguous), and their pointers.
struct Weights {
  std::vector<Tensor> dense;
  WeightPointers pointers;

  explicit Weights(const std::vector<Tensor>& weights) {
    std::array<const float*, kWeights> found;
    for (size_t i = 0; i < kWeights; ++i) {
      dense.push_back(torch::stable::contiguous(weights[i]));
      found[i] = dense.back().const_data_ptr<float>();
    }
    std::memcpy(static_cast<void*>(&pointers), found.data(), sizeof(pointers));
  }
};

// Bytes of a (batch, slots) bool tensor, or nullptr; `dense` keeps them alive.
const uint8_t* active_bytes(const std::optional<Tensor>& active, int64_t batch, int64_t slots,
                            std::optional<Tensor>& dense) {
  if (!active.has_value()) return nullptr;
  STD_TORCH_CHECK(active->dim() == 2 && active->size(0) == batch && active->size(1) == slots &&
                      active->scalar_type() == ScalarType::Bool,
                  "slot_attention: active must be a bool tensor of shape (batch, slots)");
  dense = torch::stable::contiguous(*active);
  return reinterpret_cast<const uint8_t*>(dense->const_data_ptr<bool>());
}

std::tuple<Tensor, Tensor, Tensor> slot_attention(const Tensor& inputs, const Tensor& slots,
                                                  std::vector<Tensor> weights, int64_t iterations, int64_t heads,
                                                  double epsilon, std::optional<Tensor> active, bool, bool save) {
  STD_TORCH_CHECK(slots.dim() == 3 && slots.size(0) == inputs.size(0) &&
                      inputs.scalar_type() == ScalarType::Float && slots.scalar_type() == ScalarType::Float,
                  "slot_attention: inputs and slots must be float32 of one batch size");
  const auto shape = slot_attention_shape(inputs, slots.size(1), weights, iterations, heads);
  STD_TORCH_CHECK(slots.size(2) == shape.width, "slot_attention: slots must have width ", shape.width);
  const int64_t size = glass_fast::slot_attention_saved_size(shape);
  if (size < 0) raise_unless_ok("slot_attention", {glass_fast::Status::kBadShape});
  const Tensor dense_inputs = torch::stable::contiguous(inputs), dense_slots = torch::stable::contiguous(slots);
  const Weights dense_weights(weights);
  std::optional<Tensor> dense_active;
  const uint8_t* active_data = active_bytes(active, shape.batch, shape.slots, dense_active);
  Tensor out = torch::stable::new_empty(dense_inputs, {shape.batch, shape.slots, shape.width});
  Tensor attention = torch::stable::new_empty(dense_inputs, {shape.batch, shape.slots, shape.tokens});
  Tensor saved = torch::stable::new_empty(dense_inputs, {save ? size : 0});
  raise_unless_ok(
      "slot_attention",
      glass_fast::slot_attention(dense_inputs.const_data_ptr<float>(), dense_slots.const_data_ptr<float>(),
                                 dense_weights.pointers, active_data, shape, static_cast<float>(epsilon), threads(),
                                 out.mutable_data_ptr<float>(), attention.mutable_data_ptr<float>(),
                                 save ? saved.mutable_data_ptr<float>() : nullptr));
  return {out, attention, saved};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> slot_attention_backward(
    const Tensor& pull_slots, std::optional<Tensor> pull_attention, const Tensor& inputs,
    std::vector<Tensor> weights, std::optional<Tensor> active, const Tensor& saved, int64_t iterations,
    int64_t heads, double epsilon, bool bi_level) {
  STD_TORCH_CHECK(pull_slots.dim() == 3 && pull_slots.scalar_type() == ScalarType::Float &&
                      inputs.scalar_type() == ScalarType::Float && saved.scalar_type() == ScalarType::Float,
                  "slot_attention_backward: expected float32 tensors");
  const auto shape = slot_attention_shape(inputs, pull_slots.size(1), weights, iterations, heads);
  STD_TORCH_CHECK(pull_slots.size(0) == shape.batch && pull_slots.size(2) == shape.width,
                  "slot_attention_backward: pull_slots must have the shape of the slots");
  const int64_t size = glass_fast::slot_attention_saved_size(shape);
  if (size < 0) raise_unless_ok("slot_attention_backward", {glass_fast::Status::kBadShape});
  STD_TORCH_CHECK(saved.numel() == size,
                  "slot_attention_backward: nothing was saved for it; call slot_attention with save=True");
  const Tensor dense_inputs = torch::stable::contiguous(inputs), dense_pull = torch::stable::contiguous(pull_slots),
               dense_saved = torch::stable::contiguous(saved);
  std::optional<Tensor> dense_attention;
  if (pull_attention.has_value()) {
    STD_TORCH_CHECK(pull_attention->dim() == 3 && pull_attention->size(0) == shape.batch &&
                        pull_attention->size(1) == shape.slots && pull_attention->size(2) == shape.tokens &&
                        pull_attention->scalar_type() == ScalarType::Float,
                    "slot_attention_backward: pull_attention must have the shape of the attention");
    dense_attention = torch::stable::contiguous(*pull_attention);
  }
  const Weights dense_weights(weights);
  std::optional<Tensor> dense_active;
  const uint8_t* active_data = active_bytes(active, shape.batch, shape.slots, dense_active);
  Tensor to_inputs = torch::stable::empty_like(dense_inputs);
  Tensor to_slots = torch::stable::empty_like(dense_pull);
  std::vector<Tensor> to_weights;
  std::array<float*, kWeights> found;
  for (size_t i = 0; i < kWeights; ++i) {
    to_weights.push_back(torch::stable::empty_like(dense_weights.dense[i]));
    found[i] = to_weights.back().mutable_data_ptr<float>();
  }
  GradientPointers gradients;
  std::memcpy(static_cast<void*>(&gradients), found.data(), sizeof(gradients));
  raise_unless_ok("slot_attention_backward",
                  glass_fast::slot_attention_backward(
                      dense_inputs.const_data_ptr<float>(), dense_weights.pointers, active_data, shape,
                      static_cast<float>(epsilon), bi_level, dense_saved.const_data_ptr<float>(),
                      dense_pull.const_data_ptr<float>(),
                      dense_attention.has_value() ? dense_attention->const_data_ptr<float>() : nullptr, threads(),
                      to_inputs.mutable_data_ptr<float>(), to_slots.mutable_data_ptr<float>(), gradients));
  return {to_inputs, to_slots, to_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(glass_fast, m) {
  m.def("matching(Tensor cost, Tensor? counts) -> Tensor");
  m.def(
      "mask_labels(Tensor maps, Tensor labels, int height, int width, float threshold, "
      "float uncertain_threshold) -> Tensor");
  m.def("propagation(Tensor self_map, Tensor class_maps, int tau) -> Tensor");
  m.def(
      "slot_attention(Tensor inputs, Tensor slots, Tensor[] weights, int iterations, int heads, float epsilon, "
      "Tensor? active, bool bi_level, bool save) -> (Tensor, Tensor, Tensor)");
  m.def(
      "slot_attention_backward(Tensor pull_slots, Tensor? pull_attention, Tensor inputs, Tensor[] weights, "
      "Tensor? active, Tensor saved, int iterations, int heads, float epsilon, bool bi_level) -> "
      "(Tensor, Tensor, Tensor[])");
}

STABLE_TORCH_LIBRARY_IMPL(glass_fast, CPU, m) {
  m.impl("matching", TORCH_BOX(&matching));
  m.impl("mask_labels", TORCH_BOX(&mask_labels));
  m.impl("propagation", TORCH_BOX(&propagation));
  m.impl("slot_attention", TORCH_BOX(&slot_attention));
  m.impl("slot_attention_backward", TORCH_BOX(&slot_attention_backward));
}
