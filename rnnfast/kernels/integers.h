/* The product with int8 weights. A row of activations becomes integers of 15 (or 8) bits with one scale, sums are
 * exact, and each output is one fused multiply-add of its sum times both scales to what it starts from.
 *
 * The scale of a row follows from that row alone, and integers are the same on every instruction set, so a row has the
 * bits that it has alone. A row with a NaN or an infinity gives what float32 would: the products of the weights with
 * these values. What one sum holds is bounded: 1024 * 128 * 16383 < 2^31.
 */
#ifndef RNNFAST_INTEGERS_H
#define RNNFAST_INTEGERS_H

#include "kernels.h"
#include "vec.h"

#define MAX_PANEL 4             /* most blocks of a panel */
#define QUAD_BYTES (4 * VL)     /* of a quad of one block of weights */
#define SEGMENT 1024            /* most inputs of one exact sum */
#define SPECIAL (-1.0f)         /* instead of the scale of a row with a NaN or an infinity, whose integers are zeros */
#define LEAST 0x1p-100f         /* a row whose values are all smaller counts as zeros */

/* INTEGER_ROWS: the most rows of a tile of W blocks. INTEGER_BLOCKS: the most blocks that so many rows take at once.
 * INTEGER_PANELS: how many panels one row takes at once. */
#if defined(__AVX512VNNI__)
#define INTEGER_ROWS(W, planes) ((W) == 4 ? 6 / (planes) : (W) == 3 ? 8 / (planes) : 12 / (planes))
#define INTEGER_BLOCKS(rows) MAX_PANEL
#define INTEGER_PANELS 2
#elif defined(__AVX512F__)
#define INTEGER_ROWS(W, planes) ((W) == 4 ? 5 : (W) == 3 ? 7 : 12)
#define INTEGER_BLOCKS(rows) MAX_PANEL
#define INTEGER_PANELS 2
#elif defined(__AVX2__)
#define INTEGER_ROWS(W, planes) 4
#define INTEGER_BLOCKS(rows) ((rows) == 1 ? MAX_PANEL : 1)
#define INTEGER_PANELS 1
#else
#define INTEGER_ROWS(W, planes) 1
#define INTEGER_BLOCKS(rows) MAX_PANEL
#define INTEGER_PANELS 1
#endif
#define MAX_INTEGER_ROWS 12

/* The left operand of a product: rows of floats and, where the weights are integers, the same rows as integers. */
typedef struct {
    const float *p;             /* [rows, ld] */
    ptrdiff_t ld;
    const int16_t *integers;    /* [rows, ld_integers], of v_store_activations */
    ptrdiff_t ld_integers;
    const float *scale;         /* [rows] */
    const uint32_t *excess;     /* [rows, segments]: see v_sum */
    int special;                /* whether a row is SPECIAL */
} operand;

/* k rounded up to whole blocks, which is how many integers a row of k activations has, and its number of exact sums. */
INLINE ptrdiff_t in_blocks(ptrdiff_t k) { return (k + VL - 1) / VL * VL; }
INLINE ptrdiff_t segments_of(ptrdiff_t k) { return (k + SEGMENT - 1) / SEGMENT; }

/* Write a block of x as integers, and return these. */
INLINE vf store_block(int16_t *integers, vf x, float inverse)
{
    const vf whole = v_round(v_mul(x, v_set1(inverse)));
    v_store_activations(integers, whole);
    return whole;
}

/* Write rows of a as integers, and their scales and excesses. Where all values of a row are at most 1 and `bounded` is
 * true, its scale is that of 1, so that the largest value decides nothing. Returns whether a row is SPECIAL. */
static int store_integers(const float *a, ptrdiff_t lda, ptrdiff_t rows, ptrdiff_t k, const int bounded,
                          const ptrdiff_t planes, int16_t *integers, float *scale, uint32_t *excess)
{
    const float largest = planes == 2 ? 16383.0f : 127.0f;
    int special = 0;
    for (ptrdiff_t i = 0; i < rows; i++, a += lda, integers += in_blocks(k)) {
        vf most = v_zero();
        const ptrdiff_t whole = k / VL * VL;
        for (ptrdiff_t j = 0; j < whole; j += VL)
            most = v_max_bits(v_abs(v_load(a + j)), most);
        if (whole < k)
            most = v_max_bits(v_abs(v_load_n(a + whole, (size_t)(k - whole))), most);
        const uint32_t bits = v_largest_bits(most);
        if (bits >= 0x7f800000) {           /* infinity or NaN; activations of zero are zero bytes */
            memset(integers, 0, (size_t)in_blocks(k) * sizeof *integers);
            for (ptrdiff_t segment = 0; segment < segments_of(k); segment++)
                *excess++ = 0;
            scale[i] = SPECIAL;
            special = 1;
            continue;
        }
        float magnitude, inverse = largest;
        memcpy(&magnitude, &bits, sizeof magnitude);
        scale[i] = 1.0f / largest;
        if (!bounded || magnitude > 1.0f) {
            inverse = magnitude < LEAST ? 0.0f : largest / magnitude;
            scale[i] = magnitude < LEAST ? 0.0f : magnitude / largest;
        }
        /* Sums of integers of one segment are below 2^24, so floats hold them exactly. */
        ptrdiff_t first = 0;
        do {
            const ptrdiff_t last = k - first < SEGMENT ? k : first + SEGMENT;
            const ptrdiff_t end = first + (last - first) / VL * VL;     /* of whole blocks */
            vf sum = v_zero();
            for (ptrdiff_t j = first; j < end; j += VL)
                sum = v_add(sum, store_block(integers + j, v_load(a + j), inverse));
            if (end < last)
                sum = v_add(sum, store_block(integers + end, v_load_n(a + end, (size_t)(last - end)), inverse));
            *excess++ = (uint32_t)(int32_t)v_total(sum) << 7;
            first += SEGMENT;
        } while (first < k);
    }
    return special;
}

/* c[M, P * W] = init[M, P * W] + a . w for P consecutive panels of W blocks, ldp bytes apart, over `quads` quads. */
INLINE void integer_tile(const int M, const int P, const int W, const int planes, const int16_t *a, ptrdiff_t lda,
                         const float *row_scale, const uint32_t *excess, ptrdiff_t lde, const uint8_t *w, ptrdiff_t ldw,
                         ptrdiff_t ldp, ptrdiff_t quads, const float *scale, const float *init, ptrdiff_t ldi, float *c,
                         ptrdiff_t ldc)
{
    vs acc[MAX_INTEGER_ROWS][INTEGER_PANELS * MAX_PANEL];
#pragma GCC unroll 14
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int j = 0; j < P * W; j++)
            acc[m][j] = v_no_sum();
    for (ptrdiff_t i = 0; i < quads; i++, w += ldw, a += 4) {
        if (M == 1) {
            const va x = v_activations(a, planes);
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
#pragma GCC unroll 4
                for (int j = 0; j < W; j++)
                    acc[0][p * W + j] = v_dot(acc[0][p * W + j], x, v_quads(w + p * ldp + j * QUAD_BYTES), planes);
            continue;
        }
        vq b[MAX_PANEL];
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            b[j] = v_quads(w + j * QUAD_BYTES);
#pragma GCC unroll 14
        for (int m = 0; m < M; m++) {
            const va x = v_activations(a + m * lda, planes);
#pragma GCC unroll 4
            for (int j = 0; j < W; j++)
                acc[m][j] = v_dot(acc[m][j], x, b[j], planes);
        }
    }
#pragma GCC unroll 14
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int j = 0; j < P * W; j++) {
            const vf sum = v_mul(v_sum(acc[m][j], excess[m * lde]), v_load(scale + j * VL));
            v_store(c + m * ldc + j * VL, v_fma(sum, v_set1(row_scale[m]), v_load(init + m * ldi + j * VL)));
        }
}

/* What integer_tile needs of a tile and a segment. */
typedef struct {
    const int16_t *a;
    ptrdiff_t lda;
    const float *row_scale;
    const uint32_t *excess;
    ptrdiff_t lde;
    const uint8_t *w;
    ptrdiff_t ldw, ldp, quads;
    const float *scale, *init;
    ptrdiff_t ldi;
    float *c;
    ptrdiff_t ldc;
} integer_job;

#define INTEGER_TILE(M, P, W, planes, j)                                                                             \
    integer_tile(M, P, W, planes, (j)->a, (j)->lda, (j)->row_scale, (j)->excess, (j)->lde, (j)->w, (j)->ldw,         \
                 (j)->ldp, (j)->quads, (j)->scale, (j)->init, (j)->ldi, (j)->c, (j)->ldc)

/* integer_tile of one panel for 1 <= rows <= INTEGER_ROWS(W, planes). */
INLINE void integer_rows(ptrdiff_t rows, const int W, const int planes, const integer_job *j)
{
#define ROWS(M) case M: if ((M) <= INTEGER_ROWS(W, planes)) INTEGER_TILE(M, 1, W, planes, j); break;
    switch (rows) {
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
    }
#undef ROWS
}

/* The most rows of a tile of `width` blocks. */
INLINE ptrdiff_t integer_height(ptrdiff_t width, ptrdiff_t planes)
{
    (void)planes;
    return width == 4 ? INTEGER_ROWS(4, planes) : width == 3 ? INTEGER_ROWS(3, planes) : INTEGER_ROWS(2, planes);
}

/* The job moved on by some columns, whose weights lie `bytes` further on. */
INLINE integer_job moved(integer_job j, ptrdiff_t columns, ptrdiff_t bytes)
{
    j.w += bytes;
    j.scale += columns;
    j.init += columns;
    j.c += columns;
    return j;
}

/* integer_tile for any number of rows of a panel. */
INLINE void integer_panel(ptrdiff_t rows, ptrdiff_t width, const int planes, integer_job j)
{
    const ptrdiff_t height = integer_height(width, planes);
    for (ptrdiff_t left = rows, some; left > 0; left -= some) {
        some = left < height ? left : height;
        integer_job k = j;
        for (ptrdiff_t block = 0, blocks; block < width; block += blocks) {
            blocks = width - block < INTEGER_BLOCKS(some) ? width - block : INTEGER_BLOCKS(some);
            switch (blocks) {
            case 1: integer_rows(some, 1, planes, &k); break;
            case 2: integer_rows(some, 2, planes, &k); break;
            case 3: integer_rows(some, 3, planes, &k); break;
            case 4: integer_rows(some, 4, planes, &k);
            }
            k = moved(k, blocks * VL, blocks * QUAD_BYTES);
        }
        j.a += some * j.lda;
        j.row_scale += some;
        j.excess += some * j.lde;
        j.init += some * j.ldi;
        j.c += some * j.ldc;
    }
}

/* integer_tile for any number of rows of one panel, or one row of several panels. */
INLINE void integer_panels(ptrdiff_t rows, ptrdiff_t count, ptrdiff_t width, const int planes, integer_job j)
{
    for (; INTEGER_PANELS > 1 && count > 1; count -= INTEGER_PANELS) {
        if (width == 4)
            INTEGER_TILE(1, INTEGER_PANELS, 4, planes, &j);
        else
            INTEGER_TILE(1, INTEGER_PANELS, 3, planes, &j);
        j = moved(j, INTEGER_PANELS * width * VL, INTEGER_PANELS * j.ldp);
    }
    for (; count > 0; count--) {
        integer_panel(rows, width, planes, j);
        j = moved(j, width * VL, j.ldp);
    }
}

/* Add to the SPECIAL rows of a tile the products of the weights with the NaNs and infinities of k values of a. */
static void add_special(ptrdiff_t rows, ptrdiff_t blocks, const float *a, ptrdiff_t lda, ptrdiff_t k,
                        const integer_job *j, ptrdiff_t panel_blocks)
{
    for (ptrdiff_t m = 0; m < rows; m++) {
        if (j->row_scale[m] != SPECIAL)
            continue;
        for (ptrdiff_t block = 0; block < blocks; block++)
            for (ptrdiff_t unit = 0; unit < VL; unit++) {
                const uint8_t *w = j->w + block / panel_blocks * j->ldp + block % panel_blocks * QUAD_BYTES + unit * 4;
                float sum = 0.0f;
                for (ptrdiff_t i = 0; i < k; i++)
                    if (!(fabsf(a[m * lda + i]) < INFINITY))
                        sum += a[m * lda + i] * (float)(w[i / 4 * j->ldw + i % 4] - 128);
                j->c[m * j->ldc + block * VL + unit] += sum;
            }
    }
}

/* c[rows, count * width] = init + a . w for a tile of `count` panels from `block` on, whose first row is `row`. The
 * rows have k inputs, those from `from` on, which is a multiple of four: all others count as zeros. If these are not
 * all, the matrix must have one segment only. */
static void integer_product_of(const matrix *w, ptrdiff_t from, ptrdiff_t k, ptrdiff_t block, ptrdiff_t count,
                               ptrdiff_t width, ptrdiff_t row, ptrdiff_t rows, const operand *a, const float *init,
                               ptrdiff_t ldi, float *c, ptrdiff_t ldc)
{
    const ptrdiff_t all = (w->k + 3) / 4, ldw = width * QUAD_BYTES;
    integer_job j = { .a = a->integers + row * a->ld_integers, .lda = a->ld_integers, .row_scale = a->scale + row,
                      .excess = a->excess + row * segments_of(w->k), .lde = segments_of(w->k),
                      .w = w->integers + block * QUAD_BYTES * all + from / 4 * ldw, .ldw = ldw, .ldp = ldw * all,
                      .scale = w->scale + block * VL, .init = init, .ldi = ldi, .c = c, .ldc = ldc };
    ptrdiff_t first = 0;
    do {
        const ptrdiff_t inputs = k - first < SEGMENT ? k - first : SEGMENT;
        j.quads = (inputs + 3) / 4;
        if (w->planes == 2)
            integer_panels(rows, count, width, 2, j);
        else
            integer_panels(rows, count, width, 1, j);
        if (a->special)
            add_special(rows, count * width, a->p + row * a->ld + first, a->ld, inputs, &j, width);
        first += SEGMENT;
        j.a += SEGMENT;
        j.w += SEGMENT / 4 * ldw;
        j.excess++;
        j.init = c;
        j.ldi = ldc;
    } while (first < k);
}

/* The same for all inputs. */
static void integer_product(const matrix *w, ptrdiff_t block, ptrdiff_t count, ptrdiff_t width, ptrdiff_t row,
                            ptrdiff_t rows, const operand *a, const float *init, ptrdiff_t ldi, float *c, ptrdiff_t ldc)
{
    integer_product_of(w, 0, w->k, block, count, width, row, rows, a, init, ldi, c, ldc);
}

#endif
