#define GLASS_FAST_LANES 16
#define GLASS_FAST_DENSE dense_avx512
#include "core/dense_kernels.inc"
