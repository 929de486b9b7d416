#include "core/dense.h"

#include "core/instruction_set.h"

namespace glass_fast {

const Dense& dense_base();
#ifdef GLASS_FAST_X86
const Dense& dense_avx2();
const Dense& dense_avx512();
#endif

const Dense& dense() {
#ifdef GLASS_FAST_X86
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return dense_avx512();
    case InstructionSet::kAvx2:
      return dense_avx2();
    case InstructionSet::kBase:
      break;
  }
#endif
  return dense_base();
}

}  // namespace glass_fast
