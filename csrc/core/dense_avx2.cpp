#define GLASS_FAST_LANES 8
#define GLASS_FAST_DENSE dense_avx2
#include "core/dense_kernels.inc"
