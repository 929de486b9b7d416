#pragma once

// Compiles a function for plain x86-64 and for AVX2 + FMA and picks at load time, so that one binary is both
// portable and fast. What such a function calls must be inlined into it (GLASS_FAST_INLINE) or cloned itself, or it
// stays plain x86-64. Sanitizers cannot instrument the resolver, which runs before they are set up.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define GLASS_FAST_CLONES __attribute__((target_clones("default", "arch=x86-64-v3")))
#else
#define GLASS_FAST_CLONES
#endif

#if defined(__GNUC__)
#define GLASS_FAST_INLINE inline __attribute__((always_inline))
#else
#define GLASS_FAST_INLINE inline
#endif
