/* The packed matrix kernel: every output is one chain of fused multiply-adds over k, in order, from its bias.
 *
 * A tile is M rows by W blocks of accumulators that live in registers for the whole of k. How outputs are cut into
 * tiles depends on the instruction set and the batch; the chain of one output does not, so neither do its bits.
 */
#ifndef RNNFAST_MATMUL_H
#define RNNFAST_MATMUL_H

#include "kernels.h"
#include "vec.h"

#define MAX_ROWS 8              /* most rows of a tile on any instruction set */
#define MAX_PANEL 4             /* most blocks of a panel */

/* Rows of a tile of W blocks: accumulators, W loads and a broadcast fit the registers (32 of one block on AVX-512, 16
 * of half a block on AVX2). SPLIT_PANEL: several rows take a panel of four blocks in two halves, one row takes it
 * whole. Without vector registers tall tiles gain nothing. */
#if defined(__AVX512F__)
#define TILE_ROWS(W) ((W) == 4 ? 6 : 8)
#define SPLIT_PANEL 0
#elif defined(__AVX2__)
#define TILE_ROWS(W) ((W) == 1 ? 6 : (W) == 3 ? 2 : 3)
#define SPLIT_PANEL 1
#else
#define TILE_ROWS(W) 1
#define SPLIT_PANEL 0
#endif

/* c[M, W] = init[M, W] + a[M, k] . w[k, W]; init may be c. ldw = blocks of the panel that w is in, times 16. */
INLINE void tile(const int M, const int W, const float *a, ptrdiff_t lda, const float *w, ptrdiff_t ldw, ptrdiff_t k,
                 const float *init, ptrdiff_t ldi, float *c, ptrdiff_t ldc)
{
    vf acc[MAX_ROWS][MAX_PANEL];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            acc[m][j] = v_load(init + m * ldi + j * VL);
    for (ptrdiff_t i = 0; i < k; i++, w += ldw) {
        vf b[MAX_PANEL];
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            b[j] = v_load(w + j * VL);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const vf x = v_set1(a[m * lda + i]);
#pragma GCC unroll 4
            for (int j = 0; j < W; j++)
                acc[m][j] = v_fma(x, b[j], acc[m][j]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            v_store(c + m * ldc + j * VL, acc[m][j]);
}

/* The same for 1 <= rows <= TILE_ROWS(W) */
INLINE void tile_rows(ptrdiff_t rows, const int W, const float *a, ptrdiff_t lda, const float *w, ptrdiff_t ldw,
                      ptrdiff_t k, const float *init, ptrdiff_t ldi, float *c, ptrdiff_t ldc)
{
#define ROWS(M) case M: if ((M) <= TILE_ROWS(W)) tile(M, W, a, lda, w, ldw, k, init, ldi, c, ldc); break;
    switch (rows) {
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8)
    }
#undef ROWS
}

/* The same for a whole panel of any width */
static void panel_rows(ptrdiff_t rows, ptrdiff_t width, const float *a, ptrdiff_t lda, const float *w, ptrdiff_t k,
                       const float *init, ptrdiff_t ldi, float *c, ptrdiff_t ldc)
{
    const ptrdiff_t ldw = width * VL;
    switch (width) {
    case 1: tile_rows(rows, 1, a, lda, w, ldw, k, init, ldi, c, ldc); break;
    case 2: tile_rows(rows, 2, a, lda, w, ldw, k, init, ldi, c, ldc); break;
    case 3: tile_rows(rows, 3, a, lda, w, ldw, k, init, ldi, c, ldc); break;
    case 4:
        if (SPLIT_PANEL && rows > 1) {
            tile_rows(rows, 2, a, lda, w, ldw, k, init, ldi, c, ldc);
            tile_rows(rows, 2, a, lda, w + 2 * VL, ldw, k, init + 2 * VL, ldi, c + 2 * VL, ldc);
        } else {
            tile_rows(rows, 4, a, lda, w, ldw, k, init, ldi, c, ldc);
        }
    }
}

INLINE ptrdiff_t panel_height(ptrdiff_t width)
{
    return width == 1 ? TILE_ROWS(1) : width == 2 ? TILE_ROWS(2) : width == 3 ? TILE_ROWS(3) : TILE_ROWS(4);
}

static void matmul_kernel(const matrix *w, const float *a, ptrdiff_t lda, float *c, ptrdiff_t ldc, ptrdiff_t rows,
                          ptrdiff_t n)
{
    static const float zeros[MAX_PANEL * VL];
    float edge[MAX_ROWS * MAX_PANEL * VL];
    for (ptrdiff_t block = 0; block * VL < n; block += w->panel) {
        const ptrdiff_t width = w->blocks - block < w->panel ? w->blocks - block : w->panel;
        const ptrdiff_t height = panel_height(width), ldw = width * VL;
        const ptrdiff_t columns = n - block * VL < ldw ? n - block * VL : ldw;
        const float *panel = w->w + block * VL * w->k;
        const float *bias = w->bias ? w->bias + block * VL : zeros;
        for (ptrdiff_t row = 0; row < rows; row += height) {
            const ptrdiff_t m = rows - row < height ? rows - row : height;
            float *out = c + row * ldc + block * VL;
            if (columns == ldw) {
                panel_rows(m, width, a + row * lda, lda, panel, w->k, bias, 0, out, ldc);
                continue;
            }
            panel_rows(m, width, a + row * lda, lda, panel, w->k, bias, 0, edge, ldw);
            for (ptrdiff_t i = 0; i < m; i++)
                memcpy(out + i * ldc, edge + i * ldw, (size_t)columns * sizeof(float));
        }
    }
}

#endif
