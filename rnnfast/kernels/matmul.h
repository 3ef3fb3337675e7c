/* The product with a packed matrix. Every output is one chain of fused multiply-adds over k, in order, from its bias,
 * or with integer weights the exact sum of integers.h.
 *
 * A tile is M rows by W blocks of accumulators that stay in registers for all of k. How outputs are divided into tiles
 * depends on the instruction set and the batch, but the chain of one output does not, and so neither do its bits.
 */
#ifndef RNNFAST_MATMUL_H
#define RNNFAST_MATMUL_H

#include "integers.h"
#include "kernels.h"
#include "vec.h"

#define MAX_ROWS 14             /* most rows of a tile on any instruction set */
#define MAX_TILE (MAX_ROWS * MAX_PANEL * VL)
#define INNER_CACHE (1 << 20)   /* bytes of weights that stay in the inner cache from step to step of one row */
#define ROOM (1 << 19)          /* bytes of weights that stay there even beside the data of several rows */

/* TILE_ROWS: the most rows of a tile of W blocks, so that its accumulators, W loads and a broadcast fit the registers
 * (32 of one block on AVX-512, 16 of half a block on AVX2). Without vector registers tall tiles gain nothing.
 * SPLIT_PANEL: whether so many rows take a panel of four blocks in two halves; one row takes it whole. ROW_PANELS: how
 * many panels one row takes at once, since the accumulators of one panel do not hide the latency of an fma (4 cycles,
 * 2 begun in each). PREFETCH_ROWS: the least rows of a tile that takes long enough to prefetch weights. */
#if defined(__AVX512F__)
#define TILE_ROWS(W) ((W) == 4 ? 6 : (W) == 3 ? 8 : 14)
#define SPLIT_PANEL(rows) ((rows) > TILE_ROWS(4))
#define PREFETCH_ROWS 4
#define ROW_PANELS 3
#elif defined(__AVX2__)
#define TILE_ROWS(W) ((W) == 1 ? 6 : (W) == 3 ? 2 : 3)
#define SPLIT_PANEL(rows) ((rows) > 1)
#define PREFETCH_ROWS 99
#define ROW_PANELS 1
#else
#define TILE_ROWS(W) 1
#define SPLIT_PANEL(rows) 0
#define PREFETCH_ROWS 99
#define ROW_PANELS 1
#endif

/* Weights to prefetch while a tile is computed: at each step along k two places, p and p + stride / 2, after which p
 * moves on by `stride` floats. If the stride is one block, both are in one cache line. A stride of 0 means none. */
typedef struct {
    const float *p;
    ptrdiff_t stride;
} upcoming;

/* The packed weights of the type FLOAT32, FLOAT16 or BFLOAT16 that lie `count` behind w. */
INLINE const void *behind(const int type, const void *w, ptrdiff_t count)
{
    return (const char *)w + count * (type == FLOAT32 ? 4 : 2);
}

/* The block of weights that lies `at` behind w, as floats. */
INLINE vf load_weights(const int type, const void *w, ptrdiff_t at)
{
    if (type == FLOAT32)
        return v_load((const float *)w + at);
    return type == FLOAT16 ? v_load_float16((const uint16_t *)w + at) : v_load_bfloat16((const uint16_t *)w + at);
}

/* c[M, W] = init[M, W] + a[M, k] . w[k, W] for W blocks of columns; init may be c. ldw is 16 times the number of
 * blocks of the panel in which w lies. */
INLINE void tile(const int type, const int M, const int W, const int prefetch, const float *a, ptrdiff_t lda,
                 const void *w, ptrdiff_t ldw, ptrdiff_t k, const float *init, ptrdiff_t ldi, float *c, ptrdiff_t ldc,
                 upcoming next)
{
    vf acc[MAX_ROWS][MAX_PANEL];
#pragma GCC unroll 14
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            acc[m][j] = v_load(init + m * ldi + j * VL);
    for (ptrdiff_t i = 0; i < k; i++, w = behind(type, w, ldw), next.p += next.stride) {
        vf b[MAX_PANEL];        /* v_keep takes 0.7 of the time for LSTM H200 B3 */
        if (prefetch) {
            v_prefetch(next.p);
            v_prefetch(next.p + next.stride / 2);
        }
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            b[j] = M > 1 ? v_keep(load_weights(type, w, j * VL)) : load_weights(type, w, j * VL);
#pragma GCC unroll 14
        for (int m = 0; m < M; m++) {
            const vf x = v_set1(a[m * lda + i]);
#pragma GCC unroll 4
            for (int j = 0; j < W; j++)
                acc[m][j] = v_fma(x, b[j], acc[m][j]);
        }
    }
#pragma GCC unroll 14
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            v_store(c + m * ldc + j * VL, acc[m][j]);
}

/* The same for 1 <= rows <= TILE_ROWS(W). */
INLINE void tile_rows(const int type, ptrdiff_t rows, const int W, const float *a, ptrdiff_t lda, const void *w,
                      ptrdiff_t ldw, ptrdiff_t k, const float *init, ptrdiff_t ldi, float *c, ptrdiff_t ldc,
                      upcoming next)
{
#define ROWS(M)                                                                                                      \
    case M:                                                                                                          \
        if (type == FLOAT32 && (M) >= PREFETCH_ROWS && (M) <= TILE_ROWS(W) && next.stride)                           \
            tile(type, M, W, 1, a, lda, w, ldw, k, init, ldi, c, ldc, next);                                         \
        else if ((M) <= TILE_ROWS(W))                                                                                \
            tile(type, M, W, 0, a, lda, w, ldw, k, init, ldi, c, ldc, next);                                         \
        break;
    switch (rows) {
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13) ROWS(14)
    }
#undef ROWS
}

/* c[P, W] = init[P, W] + a[k] . w for one row and P consecutive panels of W blocks. */
INLINE void tile_row(const int type, const int P, const int W, const float *a, const void *w, ptrdiff_t k,
                     const float *init, float *c)
{
    vf acc[ROW_PANELS][MAX_PANEL];
    const ptrdiff_t ldp = k * W * VL;
#pragma GCC unroll 4
    for (int p = 0; p < P; p++)
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            acc[p][j] = v_load(init + (p * W + j) * VL);
    for (ptrdiff_t i = 0; i < k; i++, w = behind(type, w, W * VL)) {
        const vf x = v_set1(a[i]);
#pragma GCC unroll 4
        for (int p = 0; p < P; p++)
#pragma GCC unroll 4
            for (int j = 0; j < W; j++)
                acc[p][j] = v_fma(x, load_weights(type, w, p * ldp + j * VL), acc[p][j]);
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; p++)
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            v_store(c + (p * W + j) * VL, acc[p][j]);
}

/* The same for 2 <= count <= ROW_PANELS panels. */
INLINE void row_panels(const int type, ptrdiff_t count, ptrdiff_t width, const float *a, const void *w, ptrdiff_t k,
                       const float *init, float *c)
{
#define PANELS(P, W) case (P) * 8 + (W): if ((P) <= ROW_PANELS) tile_row(type, P, W, a, w, k, init, c); break;
    switch (count * 8 + width) {
    PANELS(2, 3) PANELS(2, 4) PANELS(3, 3) PANELS(3, 4)
    }
#undef PANELS
}

/* c[rows, width] = init + a . w for a tile of any height and width; init may be c. */
INLINE void panel_rows(const int type, ptrdiff_t rows, ptrdiff_t width, const float *a, ptrdiff_t lda, const void *w,
                       ptrdiff_t k, const float *init, ptrdiff_t ldi, float *c, ptrdiff_t ldc, upcoming next)
{
    const ptrdiff_t ldw = width * VL;
    switch (width) {
    case 1: tile_rows(type, rows, 1, a, lda, w, ldw, k, init, ldi, c, ldc, next); break;
    case 2: tile_rows(type, rows, 2, a, lda, w, ldw, k, init, ldi, c, ldc, next); break;
    case 3: tile_rows(type, rows, 3, a, lda, w, ldw, k, init, ldi, c, ldc, next); break;
    case 4:
        if (SPLIT_PANEL(rows)) {
            tile_rows(type, rows, 2, a, lda, w, ldw, k, init, ldi, c, ldc, next);
            next.p += k * next.stride;
            w = behind(type, w, 2 * VL);
            tile_rows(type, rows, 2, a, lda, w, ldw, k, init + 2 * VL, ldi, c + 2 * VL, ldc, next);
        } else {
            tile_rows(type, rows, 4, a, lda, w, ldw, k, init, ldi, c, ldc, next);
        }
    }
}

/* panel_rows and row_panels for each type, as functions of their own. */
#define OF_TYPE(type, name)                                                                                          \
    static void name##_panel_rows(ptrdiff_t rows, ptrdiff_t width, const float *a, ptrdiff_t lda, const void *w,     \
                                  ptrdiff_t k, const float *init, ptrdiff_t ldi, float *c, ptrdiff_t ldc,            \
                                  upcoming next)                                                                     \
    {                                                                                                                \
        panel_rows(type, rows, width, a, lda, w, k, init, ldi, c, ldc, next);                                        \
    }                                                                                                                \
    static void name##_row_panels(ptrdiff_t count, ptrdiff_t width, const float *a, const void *w, ptrdiff_t k,      \
                                  const float *init, float *c)                                                       \
    {                                                                                                                \
        row_panels(type, count, width, a, w, k, init, c);                                                            \
    }
OF_TYPE(FLOAT32, float32)
OF_TYPE(FLOAT16, float16)
OF_TYPE(BFLOAT16, bfloat16)
#undef OF_TYPE

/* The most rows of a tile of a panel with `width` blocks. */
INLINE ptrdiff_t tile_height(ptrdiff_t width)
{
    return width == 1 ? TILE_ROWS(1) : width == 2 ? TILE_ROWS(2) : width == 3 ? TILE_ROWS(3) : TILE_ROWS(4);
}

/* Return the number of tiles into which so many rows of a panel are divided. Up to TILE_ROWS(2) rows take even a panel
 * of four blocks at once, in two halves, so that its weights are read only once. With more rows the weights are in the
 * inner cache by the time that they are read again. */
INLINE ptrdiff_t tiles_of_panel(const matrix *w, ptrdiff_t width, ptrdiff_t rows)
{
    if (w->type == INT8) {
        const ptrdiff_t height = integer_height(width, w->planes);
        return (rows + height - 1) / height;
    }
    const int halves = width == 4 && SPLIT_PANEL(rows) && rows <= TILE_ROWS(2);
    const ptrdiff_t height = halves ? TILE_ROWS(2) : tile_height(width);
    return (rows + height - 1) / height;
}

/* An iterator over the tiles of some panels of a matrix: `while (next_tile(&t))`. Every panel is divided into tiles of
 * about the same height. One row takes several full panels together, unless their weights do not fit the inner cache
 * (LSTM H512 B1: one at a time takes 0.97 of the time). */
typedef struct {
    const matrix *w;
    panels part;
    ptrdiff_t all, done;        /* the rows of every panel; the number of panels before the current ones */
    ptrdiff_t of_panel, left;   /* tiles of this panel: all, and those that are still to come */
    ptrdiff_t block, width, ldw;/* the panel's first block, its number of blocks; floats of a row of the tile */
    ptrdiff_t count;            /* panels of the tile: more than one only for a single row */
    ptrdiff_t row, m;           /* the first row of the tile, its number of rows */
} tiles;

INLINE tiles tiles_of(const matrix *w, panels part, ptrdiff_t rows)
{
    return (tiles){ .w = w, .part = part, .all = rows };
}

/* Bytes of the weights of all these panels. */
INLINE ptrdiff_t part_bytes(const tiles *t)
{
    const ptrdiff_t of_weight = t->w->type == INT8 ? 1 : t->w->type == FLOAT32 ? 4 : 2;
    return (t->part.last - t->part.first) * t->w->panel * VL * t->w->k * of_weight;
}

/* Move on to the next tile. Returns 0 if there is none. */
INLINE int next_tile(tiles *t)
{
    const ptrdiff_t left = t->part.last - t->part.first - t->done - t->count;
    t->row += t->m;
    if (t->left == 0) {
        if (left <= 0 || t->all == 0)
            return 0;
        const ptrdiff_t full = t->w->blocks / t->w->panel;
        t->done += t->count;
        ptrdiff_t p = t->part.backwards ? t->part.last - 1 - t->done : t->part.first + t->done;
        t->count = 1;
        t->width = t->w->blocks - p * t->w->panel;
        if (t->width >= t->w->panel) {
            t->width = t->w->panel;
            const ptrdiff_t most = t->w->type == INT8 ? INTEGER_PANELS : ROW_PANELS;
            if (most > 1 && t->all == 1 && part_bytes(t) <= INNER_CACHE) {
                ptrdiff_t run = t->part.backwards || t->part.last <= full ? left : full - p;
                t->count = run == 4 ? 2 : run < most ? run : most;
                if (t->part.backwards)
                    p -= t->count - 1;
            }
        }
        t->block = p * t->w->panel;
        t->ldw = t->count * t->width * VL;
        t->row = 0;
        t->left = t->of_panel = tiles_of_panel(t->w, t->width, t->all);
    }
    t->m = t->left == 1 ? t->all - t->row : (t->all - t->row + t->left - 1) / t->left;
    t->left--;
    return 1;
}

/* Return which part of the next panel to prefetch during the current tile: the next panel is spread over the first
 * tiles of the current one, whose weights are at w. Nothing is prefetched (stride 0) where all weights are in the
 * inner cache, or where a panel is used for so short a time that the processor's own prefetching does better. LSTM
 * H512 B32 takes 0.90 of the time, B12 0.82; H768 B24 0.84; H256 B128 0.96. */
INLINE upcoming upcoming_at(const tiles *t, const float *w)
{
    const ptrdiff_t panel = t->w->panel * VL * t->w->k, used = t->of_panel * (SPLIT_PANEL(t->m) ? 2 : 1);
    const ptrdiff_t stride = used > 2 ? VL : 2 * VL, done = (t->of_panel - 1 - t->left) * stride * t->w->k;
    const ptrdiff_t next = t->block + (t->part.backwards ? -t->w->panel : t->w->panel);
    if (used < 2 || done >= panel || next < 0 || next + t->w->panel > t->w->blocks || part_bytes(t) <= ROOM)
        return (upcoming){ w, 0 };
    return (upcoming){ t->w->w + next * VL * t->w->k + done, stride };
}

/* c = init + a . w for one tile; init and c point to the tile. init may be c. */
INLINE void multiply_tile(const tiles *t, const operand *a, const float *init, ptrdiff_t ldi, float *c, ptrdiff_t ldc)
{
    const matrix *m = t->w;
    const upcoming none = { NULL, 0 };
    if (m->type == INT8) {
        integer_product(m, t->block, t->count, t->width, t->row, t->m, a, init, ldi, c, ldc);
        return;
    }
    const ptrdiff_t first = t->block * VL * m->k;
    const float *rows = a->p + t->row * a->ld;
    if (ROW_PANELS > 1 && t->count > 1) {
        if (m->type == FLOAT32)
            float32_row_panels(t->count, t->width, rows, m->w + first, m->k, init, c);
        else if (m->type == FLOAT16)
            float16_row_panels(t->count, t->width, rows, m->halves + first, m->k, init, c);
        else
            bfloat16_row_panels(t->count, t->width, rows, m->halves + first, m->k, init, c);
        return;
    }
    /* A tile may have more rows where the other matrix of a step has integer weights, for which it was made. */
    const ptrdiff_t most = t->width == 4 && SPLIT_PANEL(t->m) ? TILE_ROWS(2) : tile_height(t->width);
    for (ptrdiff_t i = 0, some; i < t->m; i += some, rows += some * a->ld, init += some * ldi, c += some * ldc) {
        some = t->m - i < most ? t->m - i : most;
        if (m->type == FLOAT32)
            float32_panel_rows(some, t->width, rows, a->ld, m->w + first, m->k, init, ldi, c, ldc,
                               upcoming_at(t, m->w + first));
        else if (m->type == FLOAT16)
            float16_panel_rows(some, t->width, rows, a->ld, m->halves + first, m->k, init, ldi, c, ldc, none);
        else
            bfloat16_panel_rows(some, t->width, rows, a->ld, m->halves + first, m->k, init, ldi, c, ldc, none);
    }
}

/* c[rows, n] = init[rows, n] + a[rows, k] . w for some panels; init may be c. ldi = 0 uses one row init[blocks * 16]
 * for all rows. */
INLINE void multiply(const matrix *w, panels part, const operand *a, const float *init, ptrdiff_t ldi, float *c,
                     ptrdiff_t ldc, ptrdiff_t rows, ptrdiff_t n)
{
    float edge[MAX_TILE];
    for (tiles t = tiles_of(w, part, rows); next_tile(&t);) {
        const ptrdiff_t columns = n - t.block * VL < t.ldw ? n - t.block * VL : t.ldw;
        const float *from = init + t.row * ldi + t.block * VL;
        float *out = c + t.row * ldc + t.block * VL;
        if (columns == t.ldw) {
            multiply_tile(&t, a, from, ldi, out, ldc);
            continue;
        }
        if (ldi) {
            for (ptrdiff_t i = 0; i < t.m; i++)
                memcpy(edge + i * t.ldw, from + i * ldi, (size_t)columns * sizeof(float));
            multiply_tile(&t, a, edge, t.ldw, edge, t.ldw);
        } else {
            multiply_tile(&t, a, from, 0, edge, t.ldw);
        }
        for (ptrdiff_t i = 0; i < t.m; i++)
            memcpy(out + i * ldc, edge + i * t.ldw, (size_t)columns * sizeof(float));
    }
}

/* Rows of activations as integers, a group of rows at a time: so many that they fit. A group lies on the stack, of
 * which a thread may have only 128 KiB (musl). Two operands of MOST_INPUTS of _kernels.pxd fit for one row. */
enum { GROUP_INTEGERS = 1 << 14, GROUP_ROWS = 128 };

typedef struct {
    _Alignas(64) int16_t integers[GROUP_INTEGERS];
    float scale[2][GROUP_ROWS]; /* of one or two operands */
    uint32_t excess[2][GROUP_ROWS];
} group;

/* Return the most rows of a group if each has so many integers in all. */
INLINE ptrdiff_t rows_of_group(ptrdiff_t integers)
{
    const ptrdiff_t rows = GROUP_INTEGERS / (integers > 0 ? integers : 1);
    return rows < 1 ? 1 : rows < GROUP_ROWS ? rows : GROUP_ROWS;
}

/* The matmul of kernels.h for integer weights. */
static void __attribute__((noinline)) multiply_integers(const matrix *w, panels part, const float *a, ptrdiff_t lda,
                                                        float *c, ptrdiff_t ldc, ptrdiff_t rows, ptrdiff_t n)
{
    group g;
    const ptrdiff_t most = rows_of_group(in_blocks(w->k));
    for (ptrdiff_t first = 0; first < rows; first += most) {
        const ptrdiff_t some = rows - first < most ? rows - first : most;
        operand of = { a + first * lda, lda, g.integers, in_blocks(w->k), g.scale[0], g.excess[0], 0 };
        of.special = store_integers(of.p, lda, some, w->k, 0, w->planes, g.integers, g.scale[0], g.excess[0]);
        multiply(w, part, &of, w->bias, 0, c + first * ldc, ldc, some, n);
    }
}

/* The matmul of kernels.h. */
static void matmul_kernel(const matrix *w, panels part, const float *a, ptrdiff_t lda, float *c, ptrdiff_t ldc,
                          ptrdiff_t rows, ptrdiff_t n)
{
    const operand of = { .p = a, .ld = lda };
    if (w->type == INT8)
        multiply_integers(w, part, a, lda, c, ldc, rows, n);
    else
        multiply(w, part, &of, w->bias, 0, c, ldc, rows, n);
}

/* The accumulate of kernels.h. */
static void accumulate_kernel(const matrix *w, panels part, const float *a, ptrdiff_t lda, float *c, ptrdiff_t ldc,
                              ptrdiff_t rows, ptrdiff_t n)
{
    const operand of = { .p = a, .ld = lda };
    multiply(w, part, &of, c, ldc, c, ldc, rows, n);
}

#endif
