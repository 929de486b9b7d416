// Torch operators over the core, through the stable ABI only: one binary serves torch 2.10 and later, and the
// file compiles in seconds.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "core/mask_labels.h"
#include "core/matching.h"

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

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(glass_fast, m) {
  m.def("matching(Tensor cost, Tensor? counts) -> Tensor");
  m.def(
      "mask_labels(Tensor maps, Tensor labels, int height, int width, float threshold, "
      "float uncertain_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(glass_fast, CPU, m) {
  m.impl("matching", TORCH_BOX(&matching));
  m.impl("mask_labels", TORCH_BOX(&mask_labels));
}
