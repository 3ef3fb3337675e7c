/* Measures one core: fused multiply-adds, and loads from memory, in the widest vectors of the target. */
#include <stddef.h>
#if defined __AVX512F__
#define BYTES 64
#elif defined __AVX__
#define BYTES 32
#else
#define BYTES 16
#endif
#define CHAINS 12       /* enough to hide the latency (4 cycles, 2 a cycle) in 16 registers */

typedef float vec __attribute__((vector_size(BYTES)));

size_t probe_lanes(void) { return BYTES / sizeof(float); }

/* Does CHAINS * lanes * n multiply-adds. */
float probe_fma(size_t n)
{
    vec a[CHAINS], m, k;
    for (size_t j = 0; j < BYTES / sizeof(float); j++) m[j] = 0.999f, k[j] = 0.001f;
    for (int i = 0; i < CHAINS; i++) a[i] = k * (float)i;
    __asm__ volatile("" : "+m"(m), "+m"(k));
    while (n--) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) a[i] = a[i] * m + k;
    }
    for (int i = 1; i < CHAINS; i++) a[0] += a[i];
    return a[0][0];
}

/* Reads the `bytes` at p n times; p is aligned, and `bytes` is a multiple of CHAINS vectors. */
float probe_load(const void *p, size_t bytes, size_t n)
{
    vec a[CHAINS] = {0};
    const vec *v = p, *end = v + bytes / sizeof(vec);
    for (size_t left = n * (bytes / sizeof a); left--;) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) a[i] += v[i];
        v += CHAINS;
        if (v == end) {
            v = p;
            __asm__ volatile("" : "+r"(v));     /* the compiler must take this for another address */
        }
    }
    for (int i = 1; i < CHAINS; i++) a[0] += a[i];
    return a[0][0];
}
