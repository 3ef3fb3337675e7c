/* Native programs: commands that are run one after the other on values in a few buffers.
 *
 * A program is an array of words of pointer size. Each command is a struct whose fields are such words; the first two
 * of them are its `command`. Python writes the words one by one (rnnfast/onnx/compile/builder.py), and nothing checks
 * them again. Python also merges the axes of views where it can, so that commands have few axes; the last axis is the
 * innermost.
 */
#ifndef RNNFAST_PROGRAM_H
#define RNNFAST_PROGRAM_H

#include "interrupt.h"

#include <stddef.h>
#include <stdint.h>

/* Count a call and return the number of those before it, whose parity decides the order of panels. Threads may lose
 * counts of each other: no result depends on them. */
static inline unsigned rnnfast_turn(unsigned *turns)
{
    const unsigned before = __atomic_load_n(turns, __ATOMIC_RELAXED);
    __atomic_store_n(turns, before + 1, __ATOMIC_RELAXED);
    return before;
}

enum { AXES = 6 };              /* most axes of a command */
enum { MAX_BUFFERS = 64 };      /* most buffers of a program: constants, arena, inputs and outputs */
enum { MAX_RANK = 16 };         /* most axes of an output of a program */

struct kernels;
struct matrix;

/* The place of a value. Buffer 0 is the address space itself, for constants; 1 is the arena; then come the inputs and
 * the outputs of the call. */
typedef struct {
    ptrdiff_t buffer, offset;   /* the offset is in bytes */
} location;

/* What the loops of a call may still take, all of them together. */
typedef struct {
    int64_t iterations;
    int64_t work;               /* of loops whose trip counts are not known before; that of the others was counted then */
} loop_allowance;

/* The state that all commands of one run share. */
typedef struct context {
    char *const *buffers;
    const struct kernels *isa;
    int threads;
    int backwards;              /* the order of panels: alternates from call to call and changes no result */
    ptrdiff_t iteration;        /* that of the innermost loop around the command */
    loop_allowance *left;
    watch *watch;               /* counts the work of the thread; NULL where its caller counts */
} context;

/* The head of every command. */
typedef struct command {
    void (*run)(const struct command *, const context *);
    ptrdiff_t words;            /* length of the whole command, with these two */
} command;

/* Count work of a command. Returns whether the call was stopped; the command then returns. */
static inline int spend(const context *x, int64_t cost)
{
    return x->watch && rnnfast_spend(x->watch, cost);
}

enum { PIECE = 65536 };         /* values that are read, or computed, before their work is counted */

/* Return where the piece that begins at i ends, of n values. */
static inline ptrdiff_t piece_end(ptrdiff_t i, ptrdiff_t n)
{
    return n - i > PIECE ? i + PIECE : n;
}

/* Return the address of a value. */
static inline void *address_of(const context *c, location p)
{
    return (void *)((uintptr_t)c->buffers[p.buffer] + (uintptr_t)p.offset);
}

/* to[shape] = from[shape] for items of 1, 2, 4 or 8 bytes. Strides are in bytes. The two do not overlap. */
typedef struct {
    command head;
    location to, from;
    ptrdiff_t item, axes, shape[AXES], to_stride[AXES], from_stride[AXES];
} copy_command;

/* Elementwise functions of any number of arrays in one pass over a tile of the innermost axis at a time: each
 * instruction is applied to the whole tile before the next one. Values are computed as float32; other types are
 * converted when they are loaded or stored (a truth value is 1 or 0). The inputs and then the instructions follow the
 * struct. */
enum { TILE = 256, REGISTERS = 24 };
enum {                          /* types of the items of an operand */
    ITEM_FLOAT32, ITEM_BOOL, ITEM_INT32, ITEM_INT64, ITEM_UINT8, ITEM_INT8, ITEM_UINT16, ITEM_INT16, ITEM_FLOAT16,
    ITEM_BFLOAT16
};
enum {                          /* codes of instructions, beside the ACT_* of kernels.h, which have one argument */
    E_SQRT = 32, E_ABS, E_NEG, E_FLOOR, E_CEIL, E_ROUND, E_SIGN, E_RECIPROCAL, E_NOT, E_COPY, E_IS_NAN,
    E_ADD, E_SUB, E_MUL, E_DIV, E_MIN, E_MAX, E_LT, E_LE, E_EQ, E_AND, E_OR, E_PRELU, E_WHERE,
    E_POWER, E_QUANTIZE, E_QUANTIZE_BYTE, E_ROUND_TO
};

/* An operand: the type of its items is an ITEM_*, its strides are in bytes. */
typedef struct {
    location p;
    ptrdiff_t item, stride[AXES];
} element;

/* register[to] = code(register[a], register[b], register[c]). alpha and beta are the parameters of ACT_*.
 *
 * E_QUANTIZE is a / b rounded to integers, at least alpha and at most beta; c is 1 / b. E_ROUND_TO is the same times b.
 * E_QUANTIZE_BYTE is a / b rounded, plus c, at least 0 and at most 255, and 0 for NaN; b and c are each the same for
 * all elements. If there is a status (its buffer is not -1), status[0] is 1 if an a of the first two is NaN. */
typedef struct {
    ptrdiff_t code, to, a, b, c;
    double alpha, beta;
    location status;
} instruction;

typedef struct {
    command head;
    ptrdiff_t axes, shape[AXES];
    ptrdiff_t inputs, instructions;
    element out;                    /* the result of the last instruction */
    element in[];                   /* input i is loaded to register i; then the instructions */
} elementwise_command;

/* The part of a convolution's kernel that lies on one line of x: an output at line j reads line j * step + `line`.
 * Lines outside 0 .. input_lines are zero padding, which is not stored. For every j, the runs that lie inside the
 * input are consecutive. */
typedef struct {
    ptrdiff_t offset, line;     /* the offset is in floats from x[i, j, k] */
} run;

/* Narrow first <= run < end to the runs that lie inside the input, where `line` is j * step. */
static inline void runs_of_line(const run **first, const run **end, ptrdiff_t line, ptrdiff_t input_lines)
{
    while (*first < *end && (size_t)(line + (*first)->line) >= (size_t)input_lines)
        ++*first;
    while (*first < *end && (size_t)(line + (*end)[-1].line) >= (size_t)input_lines)
        --*end;
}

/* out[i, j, k, c] = bias[c] + the sum over the taps of x[i, j, k, offset of the tap, c] * w[tap, c]. Channels are
 * contiguous; the strides of the other axes are in floats. out does not overlap the others. The taps follow the
 * struct. */
typedef struct {
    command head;
    location x, out, w, bias;
    ptrdiff_t channels, taps, shape[3], x_stride[3], out_stride[3], step, input_lines;
    run tap[];
} depthwise_command;

/* out[kept axes] = the reduction of x over two more axes, `lines` and `columns`. Strides are in floats. If `across`,
 * the last kept axis is contiguous in x and in out; otherwise there is one line, whose columns are contiguous. out
 * does not overlap x. If there is a status (its buffer is not -1), which is not `across`, status[0] is 1 if an output
 * is NaN.
 *
 * REDUCE_RANGE, which is not `across`, gives two outputs for each row: the scale and the zero point with which
 * DynamicQuantizeLinear quantises it. The last kept axis has these two, both of which have the row as their x. Its
 * status tells of NaN in x. */
enum { REDUCE_SUM, REDUCE_L1, REDUCE_SQUARES, REDUCE_PRODUCT, REDUCE_MAX, REDUCE_MIN, REDUCE_RANGE };
enum { FINISH_NOTHING, FINISH_MEAN, FINISH_SQRT, FINISH_LOG };

typedef struct {
    command head;
    location x, out, status;
    ptrdiff_t kind, finish, across;
    ptrdiff_t axes, shape[AXES], x_stride[AXES], out_stride[AXES];      /* the kept axes */
    ptrdiff_t lines, columns, line_stride, column_stride;
} reduce_command;

/* Functions of whole rows of n contiguous floats. The strides between rows are in floats. out may be x, except for
 * ROWS_LOG_SOFTMAX. */
enum { ROWS_SOFTMAX, ROWS_LOG_SOFTMAX, ROWS_STANDARDIZE };

typedef struct {
    command head;
    location x, out;
    ptrdiff_t kind;
    double epsilon;
    ptrdiff_t n, axes, shape[AXES], x_stride[AXES], out_stride[AXES];
} rows_command;

/* The largest value or the average of each window over two axes of x[n, i, j, c]. Channels are contiguous; the other
 * strides are in floats. An average divides by the number of taps at positions low <= p < high. Every window has at
 * least one tap inside the input. out does not overlap x. */
typedef struct {
    ptrdiff_t size, outputs, kernel, stride, dilation, begin, low, high;
} pool_axis;

typedef struct {
    command head;
    location x, out;
    ptrdiff_t maximum, samples, channels, x_stride[3], out_stride[3];
    pool_axis of[2];
} pool_command;

/* to[o, i] = from[o, index[i]] or, if `scatters`, to[o, index[i]] = from[o, i], for items of `bytes` contiguous bytes.
 * Strides are in bytes. Indices are int32 or int64; negative ones count from the end of an axis of length `limit`. An
 * index out of range is replaced by 0 and reported: status[0] is 1 if there is one, and status[1] is the lowest or the
 * highest of them. */
typedef struct {
    command head;
    location to, from, index, status;
    ptrdiff_t scatters, bytes, outer, count, limit, index_item;
    ptrdiff_t to_outer, to_stride, from_outer, from_stride;
} gather_command;

/* to[shape] = code(a[shape], b[shape]) for integers of any type, computed in int64. Strides are in bytes. Truth values
 * are 0 or 1. I_SELECT takes a where the truth value c[shape] is true, else b; all others do not read c. A quotient is
 * truncated toward zero, the sign of I_MOD is that of b, of I_FMOD that of a; by zero they give 0 and report it, unless
 * the buffer of status is -1: status[0] is 1. */
enum {
    I_COPY, I_ADD, I_SUB, I_MUL, I_LT, I_LE, I_EQ, I_DIV, I_MOD, I_FMOD, I_MIN, I_MAX, I_AND, I_OR, I_XOR, I_SELECT
};
enum { INTEGER_BOOL, INTEGER_UINT8, INTEGER_INT8, INTEGER_INT32, INTEGER_INT64 };

typedef struct {
    command head;
    location to, a, b, c, status;
    ptrdiff_t code, to_item, item, axes, shape[AXES], to_stride[AXES], a_stride[AXES], b_stride[AXES], c_stride[AXES];
} integer_command;

/* to[shape, 0] = x[shape, 0]; to[shape, k] = code(to[shape, k - 1], x[shape, k]) for 0 < k < n: a running sum, or the
 * sum alone where to_step is 0. Strides are in bytes. The code is I_ADD, I_MUL, I_MIN or I_MAX, items are float32
 * (ORDER_FLOAT32; I_ADD and I_MUL only) or integers (INTEGER_*). to does not overlap x. */
typedef struct {
    command head;
    location to, x;
    ptrdiff_t code, item, n, to_step, x_step, axes, shape[AXES], to_stride[AXES], x_stride[AXES];
} running_command;

/* Find the k items of each row of n items that come first in order: values[..., k] (buffer -1: not wanted) and their
 * int64 places[..., k] in the row. Strides are in bytes. The order is ascending, or descending if `largest`. Of equal
 * items the one with the lower place comes first; with `higher` and k = 1, the one with the higher place. NaN is the
 * largest value, but comes first if `nan_first`. `memory` has room for 4 n int64. Items are float32 (ORDER_FLOAT32) or
 * integers (INTEGER_*). */
enum { ORDER_FLOAT32 = 8 };

typedef struct {
    command head;
    location x, values, places, memory;
    ptrdiff_t item, largest, nan_first, higher, n, k, x_stride, values_stride, places_stride;
    ptrdiff_t axes, shape[AXES], x_outer[AXES], values_outer[AXES], places_outer[AXES];
} order_command;

/* A location that moves on by `stride` bytes with every iteration. */
typedef struct {
    location p;
    ptrdiff_t stride;
} moving;

/* Copy `bytes` bytes; the two do not overlap. */
typedef struct {
    moving to, from;
    ptrdiff_t bytes;
} move;

/* A status of two int64, at `offset` in the inner arena and at `status` in the outer program. */
typedef struct {
    ptrdiff_t offset;
    location status;
} check;

/* Run an inner program, or none if it is NULL. Its buffers from 2 on are arrays that lie t * stride bytes after the
 * given location in iteration t. Then come moves, for values that no command makes or that the next iteration needs,
 * and checks, which pass on the status [failed, value] at `offset` of the inner arena to `status`, unless that reports
 * a failure already. The three lists follow the struct. */
typedef struct {
    command head;
    const ptrdiff_t *program;
    ptrdiff_t words;
    location arena;
    ptrdiff_t buffers, moves, checks;
    moving buffer[];
} call_command;

/* Run one of two commands, whose words begin at `first`: the first if the condition, a truth value, is true. */
typedef struct {
    command head;
    location condition;
    command first;
} branch_command;

/* Run the call_command that follows repeatedly, until one of its checks reports a failure: at most `trips` (int64)
 * times, while `going` (before the first iteration) and `next` (after each iteration) are true. Each of the three may
 * have buffer -1, which sets no limit. `index` receives the int64 iteration. `work` is that of an iteration, 0 if the
 * trip count was known and so the work was counted before. The status is [whether the loops of the call would take more
 * than they may, how many iterations were left when this loop began]. */
typedef struct {
    command head;
    location trips, going, next, index, status;
    ptrdiff_t work;
    command body;
} loop_command;

void rnnfast_call(const command *c, const context *x);
void rnnfast_branch(const command *c, const context *x);
void rnnfast_loop(const command *c, const context *x);
void rnnfast_order(const command *c, const context *x);
void rnnfast_reduce(const command *c, const context *x);
void rnnfast_rows(const command *c, const context *x);
void rnnfast_pool(const command *c, const context *x);
void rnnfast_gather(const command *c, const context *x);
void rnnfast_integer(const command *c, const context *x);
void rnnfast_running(const command *c, const context *x);

/* out[i, j, k, :n] = bias + the sum over runs r of x[i, j, k, offset of r + (0 .. length)] .
 * w[r * length + (0 .. length)]. Strides are in floats. out does not overlap x. The runs follow the struct. */
typedef struct {
    command head;
    const struct matrix *w;     /* the first field of the engine's `weights` */
    location x, out;
    ptrdiff_t n, shape[3], x_stride[3], out_stride[3], step, input_lines, cost, length, runs;
    run run[];
} convolution_command;

/* A convolution_command, whose words follow, and after it an elementwise_command that reads its outputs. The latter
 * has at least two axes, the first of which is the convolution's lines. */
typedef struct {
    command head;
    command convolution;
} convolved_command;

void rnnfast_depthwise(const command *c, const context *x);
void rnnfast_elementwise(const command *c, const context *x);
/* Clear the statuses of an elementwise_command, before the kernel of an instruction set runs it or parts of it. */
void rnnfast_clear_statuses(const command *c, const context *x);
void rnnfast_copy(const command *c, const context *x);
/* Run a program of so many words, or its beginning if the call is stopped. */
void rnnfast_execute(const ptrdiff_t *program, ptrdiff_t words, const context *x);
/* The same, and lower least[i] to the nanoseconds that command i took, if these are fewer. */
void rnnfast_execute_timed(const ptrdiff_t *program, ptrdiff_t words, const context *x, int64_t *least);

#endif
