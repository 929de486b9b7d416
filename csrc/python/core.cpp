// numpy view of the core for callers that have no torch; also what the native unit tests drive.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>

#include "core/mask_labels.h"
#include "core/matching.h"

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
}
