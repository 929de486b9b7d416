#include "core/status.h"

namespace glass_fast {

namespace {

const char* text(Status status) {
  switch (status) {
    case Status::kOk:
      return "";
    case Status::kNonFinite:
      return "[GF-NUM-920] a value is NaN or infinite; expected finite values";
    case Status::kOverflow:
      return "[GF-NUM-921] a value exceeds 1e300 in magnitude, so that sums could overflow float64";
    case Status::kBadCount:
      return "[GF-DATA-920] a count lies outside the number of segments";
    case Status::kBadLabel:
      return "[GF-DATA-921] a label is 255, which is reserved for uncertain pixels; expected 0 (padding) to 254";
    case Status::kBadShape:
      return "[GF-DATA-922] a size is out of range; expected sizes of at least 0 (pixels, map cells, tokens, "
             "channels, heads and iterations at least 1; 1 to 64 slots; heads dividing the width)";
  }
  return "unknown status";
}

}  // namespace

std::string describe(const char* op, const Result& result) {
  if (result.ok()) return {};
  std::string message = std::string(text(result.status)) + " (op " + op;
  if (result.batch >= 0) message += ", batch " + std::to_string(result.batch);
  if (result.row >= 0) message += ", row " + std::to_string(result.row);
  if (result.column >= 0) message += ", column " + std::to_string(result.column);
  return message + ")";
}

}  // namespace glass_fast
