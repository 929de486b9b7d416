#define GLASS_FAST_LANES 4
#define GLASS_FAST_DENSE dense_base
#include "core/dense_kernels.inc"
