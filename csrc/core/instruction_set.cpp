#include "core/instruction_set.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace glass_fast {

namespace {

InstructionSet best() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  return avx512 ? InstructionSet::kAvx512 : avx2 ? InstructionSet::kAvx2 : InstructionSet::kBase;
#else
  return InstructionSet::kBase;
#endif
}

InstructionSet allowed() {
  const char* asked = std::getenv("GLASS_FAST_CPU");
  if (asked && std::strcmp(asked, "base") == 0) return InstructionSet::kBase;
  if (asked && std::strcmp(asked, "avx2") == 0) return InstructionSet::kAvx2;
  return InstructionSet::kAvx512;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = std::min(best(), allowed());
  return chosen;
}

}  // namespace glass_fast
