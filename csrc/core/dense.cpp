#include "core/dense.h"

#include <cstdlib>
#include <cstring>

namespace glass_fast {

const Dense& dense_base();
#ifdef GLASS_FAST_X86
const Dense& dense_avx2();
const Dense& dense_avx512();
#endif

namespace {

const Dense& choose() {
#ifdef GLASS_FAST_X86
  const char* asked = std::getenv("GLASS_FAST_CPU");
  const auto wanted = [asked](const char* name) { return !asked || !*asked || std::strcmp(asked, name) == 0; };
  __builtin_cpu_init();
  if (wanted("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    return dense_avx512();
  if ((wanted("avx2") || wanted("avx512")) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return dense_avx2();
#endif
  return dense_base();
}

}  // namespace

const Dense& dense() {
  static const Dense& chosen = choose();
  return chosen;
}

}  // namespace glass_fast
