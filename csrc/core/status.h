#pragma once

#include <cstdint>
#include <string>

namespace glass_fast {

enum class Status : int {
  kOk = 0,
  kNonFinite = 1,  // a value is NaN or infinite
  kOverflow = 2,   // a finite value so large that sums could leave the range of double
  kBadCount = 3,   // a count lies outside [0, segments]
  kBadLabel = 4,   // a label is 255, which is reserved for uncertain pixels
  kBadShape = 5,   // a size is negative, or zero where at least one is needed
};

// Outcome of a core function; the indices tell where the first offending value is (-1: does not apply).
struct Result {
  Status status = Status::kOk;
  int64_t batch = -1;
  int64_t row = -1;
  int64_t column = -1;

  bool ok() const { return status == Status::kOk; }
};

// Text for users: stable code in brackets, what was wrong and where. Empty for kOk.
std::string describe(const char* op, const Result& result);

}  // namespace glass_fast
