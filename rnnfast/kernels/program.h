/* A native plan: commands one after the other, on values that lie in a few buffers of memory.
 *
 * A program is an array of words of pointer size. Each command is a struct whose fields are such words, the first two
 * of them a `command`: Python writes them one by one (rnnfast/onnx/compile/builder.py), and nobody checks them again.
 * Shapes and strides of views are merged before, so that commands have few axes and the last one is the innermost.
 */
#ifndef RNNFAST_PROGRAM_H
#define RNNFAST_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

enum { AXES = 6 };              /* most axes of a command */
enum { MAX_BUFFERS = 64 };      /* most buffers of a program: constants, arena, inputs and outputs */
enum { MAX_RANK = 16 };         /* most axes of a program's output */

struct kernels;
struct matrix;

/* Areas: 0 the address space itself, for constants; 1 the arena; then the inputs and outputs of the call. */
typedef struct {
    ptrdiff_t buffer, offset;     /* offset in bytes */
} location;

typedef struct context {
    char *const *buffers;
    const struct kernels *isa;
    int threads;
    int backwards;              /* the order of panels: alternates from call to call, decides no result */
    ptrdiff_t iteration;        /* of the loop around a command */
    int64_t *iterations;        /* that the loops of a call may still take, all together */
} context;

typedef struct command {
    void (*run)(const struct command *, const context *);
    ptrdiff_t words;            /* of the whole command, these two included */
} command;

static inline void *address_of(const context *c, location p)
{
    return (void *)((uintptr_t)c->buffers[p.buffer] + (uintptr_t)p.offset);
}

/* to[shape] = from[shape], by strides in bytes: items of 1, 2, 4 or 8 bytes. They do not overlap. */
typedef struct {
    command head;
    location to, from;
    ptrdiff_t item, axes, shape[AXES], to_stride[AXES], from_stride[AXES];
} copy_command;

/* Elementwise functions of any number of arrays in one pass, a tile of the innermost axis at a time: each instruction
 * goes through the tile before the next one does. Values are float32; the others are converted when they are loaded or
 * stored (a truth value is 1 or 0). The words of the lists below follow the struct. */
enum { TILE = 256, REGISTERS = 24 };
enum { ITEM_FLOAT32, ITEM_BOOL, ITEM_INT32, ITEM_INT64 };
enum {                          /* behind the ACT_* of kernels.h, which have one argument */
    E_SQRT = 32, E_ABS, E_NEG, E_FLOOR, E_CEIL, E_ROUND, E_SIGN, E_RECIPROCAL, E_NOT, E_COPY, E_IS_NAN,
    E_ADD, E_SUB, E_MUL, E_DIV, E_MIN, E_MAX, E_LT, E_LE, E_EQ, E_AND, E_OR, E_PRELU, E_WHERE
};

typedef struct {
    location p;
    ptrdiff_t item, stride[AXES];
} element;

typedef struct {
    ptrdiff_t code, to, a, b, c;    /* registers */
    double alpha, beta;
} instruction;

typedef struct {
    command head;
    ptrdiff_t axes, shape[AXES];
    ptrdiff_t inputs, instructions;
    element out;                    /* the last instruction's result */
    element in[];                   /* registers 0, 1, ...; then the instructions */
} elementwise_command;

/* What an output at line j of a convolution takes of line j * step + `line` of x; lines outside of 0 .. input_lines
 * are zeros that are not there. Those runs of a command that find their lines at some j lie behind each other. */
typedef struct {
    ptrdiff_t offset, line;     /* offset in floats from [i, j, k] */
} run;

static inline void runs_of_line(const run **first, const run **end, ptrdiff_t line, ptrdiff_t input_lines)
{
    while (*first < *end && (size_t)(line + (*first)->line) >= (size_t)input_lines)
        ++*first;
    while (*first < *end && (size_t)(line + (*end)[-1].line) >= (size_t)input_lines)
        --*end;
}

/* out[i, j, k, c] = bias[c] + sum over taps of x[i, j, k, offset of the tap, c] * w[tap, c]: contiguous channels, the
 * other axes by strides in floats. The taps follow the struct. */
typedef struct {
    command head;
    location x, out, w, bias;
    ptrdiff_t channels, taps, shape[3], x_stride[3], out_stride[3], step, input_lines;
    run tap[];
} depthwise_command;

/* out[kept] = the reduction of x over two axes, `lines` and `columns`, by strides in floats. The last kept axis is
 * contiguous in both if `across`; else there is one line, whose columns are contiguous. */
enum { REDUCE_SUM, REDUCE_L1, REDUCE_SQUARES, REDUCE_PRODUCT, REDUCE_MAX, REDUCE_MIN };
enum { FINISH_NOTHING, FINISH_MEAN, FINISH_SQRT, FINISH_LOG };

typedef struct {
    command head;
    location x, out;
    ptrdiff_t kind, finish, across;
    ptrdiff_t axes, shape[AXES], x_stride[AXES], out_stride[AXES];      /* kept */
    ptrdiff_t lines, columns, line_stride, column_stride;
} reduce_command;

/* Functions of whole contiguous rows of n floats, which lie along axes by strides in floats; out may be x. */
enum { ROWS_SOFTMAX, ROWS_LOG_SOFTMAX, ROWS_STANDARDIZE };

typedef struct {
    command head;
    location x, out;
    ptrdiff_t kind;
    double epsilon;
    ptrdiff_t n, axes, shape[AXES], x_stride[AXES], out_stride[AXES];
} rows_command;

/* The largest value or the average of each window over two axes: x [n, i, j, c] by strides in floats, channels
 * contiguous. An average divides by the number of taps at positions low <= p < high. Every window meets the input. */
typedef struct {
    ptrdiff_t size, outputs, kernel, stride, dilation, begin, low, high;
} pool_axis;

typedef struct {
    command head;
    location x, out;
    ptrdiff_t maximum, samples, channels, x_stride[3], out_stride[3];
    pool_axis of[2];
} pool_command;

/* to[o, i] = from[o, index[i]], or to[o, index[i]] = from[o, i] if `scatters`: items of `bytes` contiguous bytes, by
 * strides in bytes. Negative indices count from the end, of `limit`. An index out of range is taken for 0 and noted:
 * status[0] = whether there is one, status[1] = the lowest or the highest of them. Indices are int32 or int64. */
typedef struct {
    command head;
    location to, from, index, status;
    ptrdiff_t scatters, bytes, outer, count, limit, index_item;
    ptrdiff_t to_outer, to_stride, from_outer, from_stride;
} gather_command;

/* Integers of any type, computed in int64: to = code(a, b), by strides in bytes. Truth values are 0 or 1. */
enum { I_COPY, I_ADD, I_SUB, I_MUL, I_LT, I_LE, I_EQ };
enum { INTEGER_BOOL, INTEGER_UINT8, INTEGER_INT8, INTEGER_INT32, INTEGER_INT64 };

typedef struct {
    command head;
    location to, a, b;
    ptrdiff_t code, to_item, item, axes, shape[AXES], to_stride[AXES], a_stride[AXES], b_stride[AXES];
} integer_command;

/* Of each row of n items the k that come first: values (or buffer -1) and their int64 places [..., k], by strides in
 * bytes. Of equal ones that with the lower place comes first, or that with the higher one if `higher` and k = 1. NaN is
 * the largest value, but comes first if `nan_first`. `memory` has 4 n int64. Items are float32, or integers by the
 * INTEGER_* above. */
enum { ORDER_FLOAT32 = 8 };

typedef struct {
    command head;
    location x, values, places, memory;
    ptrdiff_t item, largest, nan_first, higher, n, k, x_stride, values_stride, places_stride;
    ptrdiff_t axes, shape[AXES], x_outer[AXES], values_outer[AXES], places_outer[AXES];
} order_command;

/* A program within: arrays at t * stride bytes from their places, where t is the iteration, are its buffers from 2 on.
 * Then moves, of values that no command makes or that the next iteration takes, and checks: what the program noted at
 * `offset` of its arena, [whether, value], is noted at `status` too, unless something is. The lists follow the struct. */
typedef struct {
    location p;
    ptrdiff_t stride;
} moving;

typedef struct {
    moving to, from;
    ptrdiff_t bytes;
} move;

typedef struct {
    ptrdiff_t offset;
    location status;
} check;

typedef struct {
    command head;
    const ptrdiff_t *program;
    ptrdiff_t words;
    location arena;
    ptrdiff_t buffers, moves, checks;
    moving buffer[];
} call_command;

/* One of the two commands that follow: the first where the condition, a truth value, holds. */
typedef struct {
    command head;
    location condition;
    command first;
} branch_command;

/* The call_command that follows, again and again until it notes something: at most `trips` (int64) times, and while `going` and then `next` are true,
 * as far as there are such places. `index` is the int64 iteration. Status: [whether it took too many, their number]. */
typedef struct {
    command head;
    location trips, going, next, index, status;
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

/* out[i, j, k, :n] = bias + sum over runs r of x[i, j, k, offset of r + (0 .. length)] . w[r * length + (0 .. length)],
 * axes by strides in floats. The runs follow the struct. */

typedef struct {
    command head;
    const struct matrix *w;     /* the packed weights begin with it */
    location x, out;
    ptrdiff_t n, shape[3], x_stride[3], out_stride[3], step, input_lines, cost, length, runs;
    run run[];
} convolution_command;

/* A convolution_command whose words follow, and behind them those of the elementwise_command that takes its outputs:
 * the first axis of that one, of at least two, is the convolution's lines. */
typedef struct {
    command head;
    command convolution;
} convolved_command;

void rnnfast_depthwise(const command *c, const context *x);
void rnnfast_elementwise(const command *c, const context *x);
void rnnfast_copy(const command *c, const context *x);
void rnnfast_execute(const ptrdiff_t *program, ptrdiff_t words, const context *x);
/* The same; least[i]: made smaller where command i took fewer nanoseconds */
void rnnfast_execute_timed(const ptrdiff_t *program, ptrdiff_t words, const context *x, int64_t *least);

#endif
