// numpy view of the core for callers that have no torch; also what the native unit tests drive.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <vector>

#include "core/dense.h"
#include "core/mask_labels.h"
#include "core/matching.h"
#include "core/propagation.h"
#include "core/slot_attention.h"

namespace py = pybind11;

namespace {

template <typename T>
using Dense = py::array_t<T, py::array::c_style | py::array::forcecast>;

void raise_unless_ok(const char* op, const glass_fast::Result& result) {
  if (!result.ok()) throw py::value_error(glass_fast::describe(op, result));
}

template <typename Float>
py::array_t<int64_t> matching(const py::array& cost_any, const std::optional<Dense<int64_t>>& counts, int threads) {
  const Dense<Float> cost(cost_any);
  const int64_t batch = cost.shape(0), slots = cost.shape(1), segments = cost.shape(2);
  if (counts && (counts->ndim() != 1 || counts->shape(0) != batch))
    throw py::value_error("matching: counts must have shape (batch,)");
  py::array_t<int64_t> match({batch, segments});
  int64_t* match_data = match.mutable_data();
  const int64_t* count_data = counts ? counts->data() : nullptr;
  glass_fast::Result result;
  {
    py::gil_scoped_release release;
    result = glass_fast::matching(cost.data(), count_data, batch, slots, segments, threads, match_data);
  }
  raise_unless_ok("matching", result);
  return match;
}

py::array_t<int64_t> matching_any(const py::array& cost, const std::optional<Dense<int64_t>>& counts, int threads) {
  if (cost.ndim() != 3) throw py::value_error("matching: cost must have shape (batch, slots, segments)");
  // float32 is exact in double, so only the size of the copy depends on this choice.
  return py::isinstance<py::array_t<float>>(cost) ? matching<float>(cost, counts, threads)
                                                  : matching<double>(cost, counts, threads);
}

py::array_t<uint8_t> mask_labels(const Dense<float>& maps, const Dense<uint8_t>& labels, int64_t height,
                                 int64_t width, float threshold, float uncertain_threshold, int threads) {
  if (maps.ndim() != 4)
    throw py::value_error("mask_labels: maps must have shape (batch, classes, map height, map width)");
  if (labels.ndim() != 2 || labels.shape(0) != maps.shape(0) || labels.shape(1) != maps.shape(1))
    throw py::value_error("mask_labels: labels must have shape (batch, classes)");
  if (height < 1 || width < 1) throw py::value_error("mask_labels: height and width must be at least 1");
  const glass_fast::MaskLabelsShape shape{maps.shape(0), maps.shape(1), maps.shape(2),
                                          maps.shape(3), height,        width};
  py::array_t<uint8_t> out({shape.batch, height, width});
  uint8_t* out_data = out.mutable_data();
  glass_fast::Result result;
  {
    py::gil_scoped_release release;
    result = glass_fast::mask_labels(maps.data(), labels.data(), shape, threshold, uncertain_threshold, threads,
                                     out_data);
  }
  raise_unless_ok("mask_labels", result);
  return out;
}

py::array_t<float> propagation(const Dense<float>& self_map, const Dense<float>& class_maps, int64_t tau,
                               int threads) {
  if (self_map.ndim() != 3 || class_maps.ndim() != 3 || self_map.shape(0) != class_maps.shape(0) ||
      self_map.shape(1) != self_map.shape(2) || self_map.shape(1) != class_maps.shape(1))
    throw py::value_error("propagation: expected (batch, tokens, tokens) and (batch, tokens, classes)");
  const glass_fast::PropagationShape shape{class_maps.shape(0), class_maps.shape(1), class_maps.shape(2), tau};
  py::array_t<float> out({shape.batch, shape.tokens, shape.classes});
  float* out_data = out.mutable_data();
  glass_fast::Result result;
  {
    py::gil_scoped_release release;
    result = glass_fast::propagation(self_map.data(), class_maps.data(), shape, threads, out_data);
  }
  raise_unless_ok("propagation", result);
  return out;
}

py::tuple slot_attention(const Dense<float>& inputs, const Dense<float>& slots,
                         const std::vector<Dense<float>>& weights, int64_t iterations, int64_t heads, float epsilon,
                         const std::optional<Dense<bool>>& active, int threads) {
  constexpr size_t kWeights = glass_fast::kSlotAttentionWeights;
  if (inputs.ndim() != 3 || slots.ndim() != 3 || inputs.shape(0) != slots.shape(0) || weights.size() != kWeights)
    throw py::value_error(
        "slot_attention: expected inputs (batch, tokens, channels), slots (batch, slots, width) and 17 weights");
  const int64_t channels = inputs.shape(2), width = slots.shape(2), hidden = weights[14].size();
  const glass_fast::SlotAttentionShape shape{inputs.shape(0), inputs.shape(1), channels, slots.shape(1),
                                             width,           hidden,          heads,    iterations};
  const auto sizes = glass_fast::slot_attention_weight_sizes(shape);
  std::array<const float*, kWeights> found;
  for (size_t i = 0; i < kWeights; ++i) {
    if (weights[i].size() != sizes[i])
      throw py::value_error("slot_attention: weight " + std::to_string(i) + " has " +
                            std::to_string(weights[i].size()) + " elements; expected " + std::to_string(sizes[i]));
    found[i] = weights[i].data();
  }
  glass_fast::SlotAttentionTensors<const float*> pointers;
  std::memcpy(static_cast<void*>(&pointers), found.data(), sizeof(pointers));
  if (active && (active->ndim() != 2 || active->shape(0) != shape.batch || active->shape(1) != shape.slots))
    throw py::value_error("slot_attention: active must have shape (batch, slots)");
  if (glass_fast::slot_attention_saved_size(shape) < 0)
    raise_unless_ok("slot_attention", {glass_fast::Status::kBadShape});
  py::array_t<float> out({shape.batch, shape.slots, shape.width}),
      attention({shape.batch, shape.slots, shape.tokens});
  float *out_data = out.mutable_data(), *attention_data = attention.mutable_data();
  glass_fast::Result result;
  {
    py::gil_scoped_release release;
    result = glass_fast::slot_attention(inputs.data(), slots.data(), pointers,
                                        active ? reinterpret_cast<const uint8_t*>(active->data()) : nullptr, shape,
                                        epsilon, threads, out_data, attention_data, nullptr);
  }
  raise_unless_ok("slot_attention", result);
  return py::make_tuple(out, attention);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Torch-free native core of glass-fast: numpy arrays in, numpy arrays out.";
  m.def("matching", &matching_any, py::arg("cost"), py::arg("counts") = py::none(), py::arg("threads") = 1,
        "Slot of every segment, int64 (batch, segments), -1 where there is none; minimises the total cost.\n\n"
        "cost: float (batch, slots, segments); counts: int (batch,) valid segments or None.\n"
        "Raises ValueError for NaN, infinite values or counts out of range.");
  m.def("mask_labels", &mask_labels, py::arg("maps"), py::arg("labels"), py::arg("height"), py::arg("width"),
        py::arg("threshold"), py::arg("uncertain_threshold"), py::arg("threads") = 1,
        "Label image uint8 (batch, height, width) from class maps float32 (batch, classes, h, w).\n\n"
        "labels: uint8 (batch, classes), 0 = padding. Raises ValueError for NaN, infinite values or label 255.");
  m.def(
      "instruction_set", [] { return glass_fast::dense().name; },
      "Instruction set that the dense kernels use here: avx512, avx2 or base.");
  m.def("propagation", &propagation, py::arg("self_map"), py::arg("class_maps"), py::arg("tau"),
        py::arg("threads") = 1,
        "self_map ** tau @ class_maps, float32 (batch, tokens, classes).\n\n"
        "self_map: float32 (batch, tokens, tokens); class_maps: float32 (batch, tokens, classes).");
  m.def("slot_attention", &slot_attention, py::arg("inputs"), py::arg("slots"), py::arg("weights"),
        py::arg("iterations"), py::arg("heads") = 1, py::arg("epsilon") = 1e-6f, py::arg("active") = py::none(),
        py::arg("threads") = 1,
        "Slots float32 (batch, slots, width) and attention (batch, slots, tokens); inference only.\n\n"
        "weights: 17 arrays in the order of glass_fast.kernels.slot_attention.SlotAttentionWeights;\n"
        "active: bool (batch, slots) or None.");
}
