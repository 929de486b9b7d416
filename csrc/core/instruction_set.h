#pragma once

namespace glass_fast {

enum class InstructionSet { kBase, kAvx2, kAvx512 };

// Best instruction set of this processor that the core has code for; kAvx512 means F, VL, DQ and BW, kAvx2 also FMA
// and BMI2. GLASS_FAST_CPU=base, avx2 or avx512 asks for a lesser one; one that the processor lacks is ignored.
InstructionSet instruction_set();

}  // namespace glass_fast
