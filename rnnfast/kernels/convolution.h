/* The convolution_command of program.h. Each output is one chain of fused multiply-adds over the runs, in order, that
 * starts from its bias. Runs that lie outside the input are left out. */
#ifndef RNNFAST_CONVOLUTION_H
#define RNNFAST_CONVOLUTION_H

#include "elementwise.h"
#include "kernels.h"
#include "matmul.h"
#include "program.h"
#include "vec.h"

#define FEW_POSITIONS 3         /* fewer positions than this do not fill a tile */

/* Consecutive runs of `length` floats each. */
typedef struct {
    const run *first, *end;
    ptrdiff_t length;
} runs;

/* c[M, W] = bias[W] + the sum over the runs of a[M, offset + (0 .. length)] . w[length, W], for W blocks of columns. w
 * moves on by `length` rows of ldw floats from run to run. c does not alias a, w or bias. */
INLINE void runs_tile(const int M, const int W, const float *a, ptrdiff_t lda, const runs *q, const float *w,
                      ptrdiff_t ldw, const float *bias, float *c, ptrdiff_t ldc)
{
    vf acc[MAX_ROWS][MAX_PANEL];
#pragma GCC unroll 14
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            acc[m][j] = v_load(bias + j * VL);
    for (const run *r = q->first; r < q->end; r++) {
        const float *from = a + r->offset;
        for (ptrdiff_t i = 0; i < q->length; i++, w += ldw) {
            vf b[MAX_PANEL];
#pragma GCC unroll 4
            for (int j = 0; j < W; j++)
                b[j] = M > 1 ? v_keep(v_load(w + j * VL)) : v_load(w + j * VL);
#pragma GCC unroll 14
            for (int m = 0; m < M; m++) {
                const vf x = v_set1(from[m * lda + i]);
#pragma GCC unroll 4
                for (int j = 0; j < W; j++)
                    acc[m][j] = v_fma(x, b[j], acc[m][j]);
            }
        }
    }
#pragma GCC unroll 14
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int j = 0; j < W; j++)
            v_store(c + m * ldc + j * VL, acc[m][j]);
}

/* runs_tile for 1 <= rows <= TILE_ROWS(W). */
INLINE void runs_rows(ptrdiff_t rows, const int W, const float *a, ptrdiff_t lda, const runs *q, const float *w,
                      ptrdiff_t ldw, const float *bias, float *c, ptrdiff_t ldc)
{
#define ROWS(M) case M: if ((M) <= TILE_ROWS(W)) runs_tile(M, W, a, lda, q, w, ldw, bias, c, ldc); break;
    switch (rows) {
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13) ROWS(14)
    }
#undef ROWS
}

/* runs_tile for any height and width of a tile. */
static void runs_panel(ptrdiff_t rows, ptrdiff_t width, const float *a, ptrdiff_t lda, const runs *q, const float *w,
                       const float *bias, float *c, ptrdiff_t ldc)
{
    const ptrdiff_t ldw = width * VL;
    switch (width) {
    case 1: runs_rows(rows, 1, a, lda, q, w, ldw, bias, c, ldc); break;
    case 2: runs_rows(rows, 2, a, lda, q, w, ldw, bias, c, ldc); break;
    case 3: runs_rows(rows, 3, a, lda, q, w, ldw, bias, c, ldc); break;
    case 4: runs_rows(rows, 4, a, lda, q, w, ldw, bias, c, ldc);
    }
}

/* Compute positions first <= k < last of one line; a and out point to the line's first position. */
static void runs_line(const convolution_command *m, const runs *q, panels part, ptrdiff_t first, ptrdiff_t last,
                      const float *a, float *out)
{
    const matrix *w = m->w;
    const ptrdiff_t rows = last - first, lda = m->x_stride[2], ldc = m->out_stride[2];
    const ptrdiff_t skipped = (q->first - m->run) * q->length;
    float edge[MAX_TILE];
    for (ptrdiff_t p = part.first; p < part.last; p++) {
        const ptrdiff_t block = p * w->panel, width = w->blocks - block < w->panel ? w->blocks - block : w->panel;
        const ptrdiff_t height = tile_height(width);
        const ptrdiff_t columns = m->n - block * VL < width * VL ? m->n - block * VL : width * VL;
        const float *of_panel = w->w + block * VL * w->k + skipped * width * VL, *bias = w->bias + block * VL;
        ptrdiff_t k = first;
        for (ptrdiff_t left = (rows + height - 1) / height; left > 0; left--) {
            const ptrdiff_t size = (last - k + left - 1) / left;
            float *to = out + k * ldc + block * VL;
            if (columns == width * VL) {
                runs_panel(size, width, a + k * lda, lda, q, of_panel, bias, to, ldc);
            } else {
                runs_panel(size, width, a + k * lda, lda, q, of_panel, bias, edge, width * VL);
                for (ptrdiff_t i = 0; i < size; i++)
                    memcpy(to + i * ldc, edge + i * width * VL, (size_t)columns * sizeof(float));
            }
            k += size;
        }
    }
}

/* Compute all lines of one position, to whose first line x and out point. This is used where there are fewer positions
 * than lines: the rows of a tile are lines, and each run is added to the lines for which it lies inside the input. A
 * tile's outputs stay in the inner cache from run to run. A stream of Silero VAD takes 0.78 of the time that a tile for
 * each line takes. */
static void runs_of_lines(const convolution_command *m, interrupt *call, panels part, const float *x, float *out)
{
    const matrix *w = m->w;
    const ptrdiff_t lda = m->x_stride[1], ldc = m->out_stride[1];
    float c[MAX_TILE];
    watch own = rnnfast_watch_of(call);
    for (ptrdiff_t p = part.first; p < part.last; p++) {
        const ptrdiff_t block = p * w->panel, width = w->blocks - block < w->panel ? w->blocks - block : w->panel;
        const ptrdiff_t ldw = width * VL, columns = m->n - block * VL < ldw ? m->n - block * VL : ldw;
        const ptrdiff_t height = tile_height(width);
        for (ptrdiff_t j = 0; j < m->shape[1]; j += height) {
            const ptrdiff_t end = m->shape[1] - j < height ? m->shape[1] : j + height;
            const float *of_run = w->w + block * VL * w->k;
            for (ptrdiff_t i = j; i < end; i++)
                memcpy(c + (i - j) * ldw, w->bias + block * VL, (size_t)ldw * sizeof(float));
            for (const run *r = m->run; r < m->run + m->runs; r++, of_run += m->length * ldw) {
                ptrdiff_t low = j, high = end;
                while (low < high && (size_t)(low * m->step + r->line) >= (size_t)m->input_lines)
                    low++;
                while (low < high && (size_t)((high - 1) * m->step + r->line) >= (size_t)m->input_lines)
                    high--;
                float *to = c + (low - j) * ldw;
                if (low < high)
                    float32_panel_rows(high - low, width, x + low * lda + r->offset, lda, of_run, m->length, to, ldw,
                                       to, ldw, (upcoming){ of_run, 0 });
            }
            for (ptrdiff_t i = j; i < end; i++)
                memcpy(out + i * ldc + block * VL, c + (i - j) * ldw, (size_t)columns * sizeof(float));
            if (rnnfast_spend(&own, w->k * width * VL / 4))
                return;
        }
    }
}

/* Outputs of a convolution with integer weights, at most as many as a group holds: where their first inputs and they
 * lie, and their lines. Their inputs are those of the runs q; a run outside the input of a line is zeros there. */
typedef struct {
    ptrdiff_t rows;
    const float *x[GROUP_ROWS];
    float *out[GROUP_ROWS];
    ptrdiff_t line[GROUP_ROWS];
    int adjacent;               /* whether they are out_stride[2] apart */
    runs q;
} output_rows;

/* Add the outputs first <= k < last of a line. */
INLINE void add_outputs(const convolution_command *m, output_rows *o, ptrdiff_t line, ptrdiff_t first, ptrdiff_t last,
                        const float *x, float *out)
{
    const ptrdiff_t i = line / m->shape[1], j = line % m->shape[1];
    x += i * m->x_stride[0] + j * m->x_stride[1];
    out += i * m->out_stride[0] + j * m->out_stride[1];
    for (ptrdiff_t k = first; k < last; k++, o->rows++) {
        o->x[o->rows] = x + k * m->x_stride[2];
        o->out[o->rows] = out + k * m->out_stride[2];
        o->line[o->rows] = j * m->step;
    }
}

/* Copy the inputs of output i to a row, behind so many zeros. */
INLINE void gather_row(const convolution_command *m, const output_rows *o, ptrdiff_t i, ptrdiff_t zeros, float *row)
{
    for (; zeros > 0; zeros--)
        *row++ = 0.0f;
    for (const run *r = o->q.first; r < o->q.end; r++, row += m->length) {
        if ((size_t)(o->line[i] + r->line) < (size_t)m->input_lines)
            memcpy(row, o->x[i] + r->offset, (size_t)m->length * sizeof(float));
        else
            memset(row, 0, (size_t)m->length * sizeof(float));
    }
}

/* Compute a group of outputs. The inputs of an output are a row of its own, with its own scale. */
static void convolve_group(const convolution_command *m, const output_rows *o, group *g, float *row)
{
    const matrix *w = m->w;
    const ptrdiff_t skipped = (o->q.first - m->run) * m->length, zeros = skipped % 4, from = skipped - zeros;
    const ptrdiff_t k = zeros + (o->q.end - o->q.first) * m->length;
    const ptrdiff_t ld = in_blocks(k), segments = segments_of(w->k);
    const operand a = { row, k, g->integers, ld, g->scale[0], g->excess[0], 0 };
    int special = 0;
    for (ptrdiff_t i = 0; i < o->rows; i++) {
        gather_row(m, o, i, zeros, row);
        special |= store_integers(row, k, 1, k, 0, w->planes, g->integers + i * ld, g->scale[0] + i,
                                  g->excess[0] + i * segments);
    }
    float c[MAX_TILE];
    for (ptrdiff_t block = 0; block < w->blocks; block += w->panel) {
        const ptrdiff_t width = w->blocks - block < w->panel ? w->blocks - block : w->panel, ldc = width * VL;
        const ptrdiff_t height = integer_height(width, w->planes);
        const ptrdiff_t columns = m->n - block * VL < ldc ? m->n - block * VL : ldc;
        const float *bias = w->bias + block * VL;
        for (ptrdiff_t first = 0, some; first < o->rows; first += some) {
            some = o->rows - first < height ? o->rows - first : height;
            if (o->adjacent && columns == ldc) {
                integer_product_of(w, from, k, block, 1, width, first, some, &a, bias, 0, o->out[first] + block * VL,
                                   m->out_stride[2]);
                continue;
            }
            integer_product_of(w, from, k, block, 1, width, first, some, &a, bias, 0, c, ldc);
            for (ptrdiff_t i = first; i < first + some; i++)
                memcpy(o->out[i] + block * VL, c + (i - first) * ldc, (size_t)columns * sizeof(float));
        }
        for (ptrdiff_t i = 0; special && i < o->rows; i++) {
            if (g->scale[0][i] != SPECIAL)
                continue;
            const operand alone = { row, k, a.integers + i * ld, ld, a.scale + i, a.excess + i * segments, 1 };
            gather_row(m, o, i, zeros, row);
            integer_product_of(w, from, k, block, 1, width, 0, 1, &alone, bias, 0, c, ldc);
            memcpy(o->out[i] + block * VL, c, (size_t)columns * sizeof(float));
        }
    }
}

/* convolution_kernel with integer weights for first <= k < last of the lines first_line <= line < last_line. */
static void __attribute__((noinline)) convolve_integers(const convolution_command *m, const command *then,
                                                        const context *quiet, ptrdiff_t first_line, ptrdiff_t last_line,
                                                        ptrdiff_t first, ptrdiff_t last, const float *x, float *out)
{
    group g;
    output_rows o;
    float row[GROUP_INTEGERS / 4];     /* MOST_INPUTS of _kernels.pxd */
    const ptrdiff_t positions = last - first, most = rows_of_group(in_blocks(m->w->k));
    const ptrdiff_t lines = positions > 0 && most > positions ? most / positions : 1;
    for (ptrdiff_t line = first_line; line < last_line && positions > 0; line += lines) {
        const ptrdiff_t end = last_line - line < lines ? last_line : line + lines;
        o.q = (runs){ m->run, m->run + m->runs, m->length };
        o.adjacent = end - line == 1;
        /* Zeros add nothing, so the runs outside the input of a single line are left out. */
        if (end - line == 1 && segments_of(m->w->k) == 1)
            runs_of_line(&o.q.first, &o.q.end, line % m->shape[1] * m->step, m->input_lines);
        for (ptrdiff_t k = first; k < last; k += most) {
            o.rows = 0;
            for (ptrdiff_t l = line; l < end; l++)
                add_outputs(m, &o, l, k, last - k < most ? last : k + most, x, out);
            convolve_group(m, &o, &g, row);
        }
        if (then)
            elementwise_part((const elementwise_command *)then, quiet, line, end);
    }
}

/* Compute part `part` of `parts`: some of the lines or, where there are few lines, some positions of each. If `then` is
 * not NULL, it is an elementwise_command whose first axis is the lines; it is run on each line while that is in the
 * cache. */
static void convolution_kernel(const command *head, const command *then, const context *call, int part, int parts)
{
    const convolution_command *m = (const convolution_command *)head;
    const float *x = address_of(call, m->x);
    float *out = address_of(call, m->out);
    const ptrdiff_t lines = m->shape[0] * m->shape[1], end = (m->w->blocks + m->w->panel - 1) / m->w->panel;
    ptrdiff_t first_line = 0, last_line = lines, first = 0, last = m->shape[2];
    if (last < FEW_POSITIONS && m->shape[1] > last && !then && m->w->type == FLOAT32) {
        const panels some = { end * part / parts, end * (part + 1) / parts, 0 };
        for (ptrdiff_t i = 0; i < m->shape[0]; i++)
            for (ptrdiff_t k = 0; k < last; k++)
                runs_of_lines(m, call->watch->call, some, x + i * m->x_stride[0] + k * m->x_stride[2],
                              out + i * m->out_stride[0] + k * m->out_stride[2]);
        return;
    }
    if (lines >= 2 * parts) {
        first_line = lines * part / parts;
        last_line = lines * (part + 1) / parts;
    } else {
        first = last * part / parts;
        last = last * (part + 1) / parts;
    }
    context quiet = *call;           /* other threads than the caller's may be here, which counts this work */
    quiet.watch = NULL;
    if (m->w->type == INT8) {
        convolve_integers(m, then, &quiet, first_line, last_line, first, last, x, out);
        return;
    }
    const int stay = m->w->blocks * VL * m->w->k * (ptrdiff_t)sizeof(float) <= INNER_CACHE;
    for (ptrdiff_t p = 0; p < end; p += stay ? end : 1) {
        const panels some = { p, stay ? end : p + 1, 0 };
        for (ptrdiff_t line = first_line; line < last_line; line++) {
            const ptrdiff_t i = line / m->shape[1], j = line % m->shape[1];
            runs q = { m->run, m->run + m->runs, m->length };
            runs_of_line(&q.first, &q.end, j * m->step, m->input_lines);
            runs_line(m, &q, some, first, last, x + i * m->x_stride[0] + j * m->x_stride[1],
                      out + i * m->out_stride[0] + j * m->out_stride[1]);
            if (then && some.last == end)
                elementwise_part((const elementwise_command *)then, &quiet, line, line + 1);
        }
    }
}

#endif
