/* The loop over the commands of a program, and the commands that are the same on every instruction set: they move data,
 * compute integers and control the flow. */
#define _POSIX_C_SOURCE 200809L         /* clock_gettime */

#include "kernels.h"
#include "program.h"
#include "vec.h"

#include <stdbool.h>
#include <string.h>
#include <time.h>

enum { COMMANDS = 16 };         /* that run before they are counted, besides the work that each counts itself */

void rnnfast_execute(const ptrdiff_t *program, ptrdiff_t words, const context *x)
{
    int counted = 0;
    for (const ptrdiff_t *p = program; p < program + words; p += ((const command *)p)->words) {
        ((const command *)p)->run((const command *)p, x);
        if (++counted == COMMANDS) {
            if (rnnfast_spend(x->watch, COMMANDS * COMMAND_COST))
                return;
            counted = 0;
        }
    }
    rnnfast_spend(x->watch, counted * COMMAND_COST);
}

static int64_t nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void rnnfast_execute_timed(const ptrdiff_t *program, ptrdiff_t words, const context *x, int64_t *least)
{
    int64_t before = nanoseconds();
    for (const ptrdiff_t *p = program; p < program + words; p += ((const command *)p)->words, least++) {
        ((const command *)p)->run((const command *)p, x);
        const int64_t now = nanoseconds();
        *least = now - before < *least ? now - before : *least;
        before = now;
    }
}

/* The address of a location that moves with the iteration. */
static char *at_iteration(const context *x, const moving *m)
{
    return (char *)address_of(x, m->p) + x->iteration * m->stride;
}

enum { COPIED_BYTES = 1 << 23 };    /* that are copied before the work is counted */

/* memcpy in pieces. Returns whether the call was stopped. */
static int copy_bytes(const context *x, char *to, const char *from, ptrdiff_t bytes)
{
    for (; bytes > COPIED_BYTES; bytes -= COPIED_BYTES, to += COPIED_BYTES, from += COPIED_BYTES) {
        memcpy(to, from, COPIED_BYTES);
        if (spend(x, COPIED_BYTES / 16))
            return 1;
    }
    memcpy(to, from, (size_t)bytes);
    return 0;
}

void rnnfast_call(const command *c, const context *x)
{
    const call_command *m = (const call_command *)c;
    const move *moves = (const move *)(m->buffer + m->buffers);
    const check *checks = (const check *)(moves + m->moves);
    if (m->program) {
        char *buffers[MAX_BUFFERS] = {NULL, address_of(x, m->arena)};
        for (ptrdiff_t i = 0; i < m->buffers; i++)
            buffers[2 + i] = at_iteration(x, &m->buffer[i]);
        context inner = *x;
        inner.buffers = buffers;
        rnnfast_execute(m->program, m->words, &inner);
        for (ptrdiff_t i = 0; i < m->checks; i++) {
            int64_t *status = address_of(x, checks[i].status);
            if (!status[0])
                memcpy(status, buffers[1] + checks[i].offset, 2 * sizeof *status);
        }
    }
    for (ptrdiff_t i = 0; i < m->moves; i++)
        if (copy_bytes(x, at_iteration(x, &moves[i].to), at_iteration(x, &moves[i].from), moves[i].bytes))
            return;
}

void rnnfast_branch(const command *c, const context *x)
{
    const branch_command *m = (const branch_command *)c;
    const command *chosen = &m->first;
    if (!*(const uint8_t *)address_of(x, m->condition))
        chosen = (const command *)((const ptrdiff_t *)chosen + chosen->words);
    chosen->run(chosen, x);
}

/* Return whether a check of this call_command has reported a failure. */
static bool noted(const command *c, const context *x)
{
    const call_command *m = (const call_command *)c;
    const check *checks = (const check *)((const move *)(m->buffer + m->buffers) + m->moves);
    for (ptrdiff_t i = 0; i < m->checks; i++)
        if (*(const int64_t *)address_of(x, checks[i].status))
            return true;
    return false;
}

void rnnfast_loop(const command *c, const context *x)
{
    const loop_command *m = (const loop_command *)c;
    const int64_t trips = m->trips.buffer < 0 ? INT64_MAX : *(const int64_t *)address_of(x, m->trips);
    int64_t *index = address_of(x, m->index), *status = address_of(x, m->status), left = x->left->iterations;
    bool going = m->going.buffer < 0 || *(const uint8_t *)address_of(x, m->going);
    context inner = *x;
    for (int64_t i = 0; going && i < trips; i++) {
        if (x->left->iterations < 1 || x->left->work < m->work) {
            status[0] = 1;
            status[1] = left;
            break;
        }
        x->left->iterations--;
        x->left->work -= m->work;
        *index = i;
        inner.iteration = i;
        inner.backwards = x->backwards ^ (int)(i & 1);
        m->body.run(&m->body, &inner);
        if (noted(&m->body, x) || rnnfast_spend(x->watch, COMMAND_COST))
            break;
        going = m->next.buffer < 0 || *(const uint8_t *)address_of(x, m->next);
    }
}

#define ITEMS_LOOP(type)                                                                                             \
    for (ptrdiff_t i = 0; i < n; i++)                                                                                \
        *(type *)(to + i * to_stride) = *(const type *)(from + i * from_stride);                                     \
    break;

/* to[i] = from[i] for n items of `item` bytes. */
static void copy_items(char *to, ptrdiff_t to_stride, const char *from, ptrdiff_t from_stride, ptrdiff_t n,
                       ptrdiff_t item)
{
    if (to_stride == item && from_stride == item) {
        memcpy(to, from, (size_t)(n * item));
        return;
    }
    if (to_stride == item && from_stride == 0 && n > 0) {
        memcpy(to, from, (size_t)item);
        for (ptrdiff_t done = 1; done < n; done *= 2)
            memcpy(to + done * item, to, (size_t)((n - done < done ? n - done : done) * item));
        return;
    }
    switch (item) {
    case 1: ITEMS_LOOP(uint8_t)
    case 2: ITEMS_LOOP(uint16_t)
    case 4: ITEMS_LOOP(uint32_t)
    case 8: ITEMS_LOOP(uint64_t)
    }
}

/* Side of the squares in which a matrix is transposed: the lines of one stay in the inner cache on both sides. */
enum { SQUARE = 16 };

#define SQUARE_LOOP(type)                                                                                            \
    for (; i < i1; i++)                                                                                              \
        for (ptrdiff_t j = j0; j < j1; j++) {                                                                        \
            const char *item = from + i * (ptrdiff_t)sizeof(type) + j * b;                                           \
            *(type *)(to + i * a + j * (ptrdiff_t)sizeof(type)) = *(const type *)item;                               \
        }                                                                                                            \
    break;

/* Copy the last two axes, of which the last is contiguous in `to` and the one before it in `from`. Returns whether the
 * call was stopped. */
static int transpose(const copy_command *m, const context *x, ptrdiff_t axis, char *to, const char *from)
{
    const ptrdiff_t rows = m->shape[axis], columns = m->shape[axis + 1];
    const ptrdiff_t a = m->to_stride[axis], b = m->from_stride[axis + 1];
    for (ptrdiff_t i0 = 0; i0 < rows; i0 += SQUARE) {
        ptrdiff_t counted = 0;
        for (ptrdiff_t j0 = 0; j0 < columns; j0 += SQUARE) {
            if (j0 - counted >= PIECE) {
                if (spend(x, SQUARE * PIECE))
                    return 1;
                counted = j0;
            }
            const ptrdiff_t i1 = rows - i0 < SQUARE ? rows : i0 + SQUARE;
            const ptrdiff_t j1 = columns - j0 < SQUARE ? columns : j0 + SQUARE;
            ptrdiff_t i = i0;
            if (m->item == 4 && j1 - j0 == SQUARE)
                for (; i + 4 <= i1; i += 4)
                    for (ptrdiff_t j = j0; j < j1; j += 4)
                        v_transpose4(from + i * 4 + j * b, b, to + i * a + j * 4, a);
            switch (m->item) {
            case 1: SQUARE_LOOP(uint8_t)
            case 2: SQUARE_LOOP(uint16_t)
            case 4: SQUARE_LOOP(uint32_t)
            case 8: SQUARE_LOOP(uint64_t)
            }
        }
        if (spend(x, SQUARE * columns))
            return 1;
    }
    return 0;
}

enum { COPIED = 1 << 20 };      /* items of one line that are copied before the work is counted */

/* Copy the axes from `axis` on. Returns whether the call was stopped. */
static int copy_axes(const copy_command *m, const context *x, ptrdiff_t axis, char *to, const char *from)
{
    if (axis >= AXES - 1 || axis == m->axes - 1) {
        const ptrdiff_t to_stride = m->to_stride[axis], from_stride = m->from_stride[axis];
        for (ptrdiff_t left = m->shape[axis]; left > 0; left -= COPIED, to += COPIED * to_stride,
                       from += COPIED * from_stride) {
            const ptrdiff_t n = left < COPIED ? left : COPIED;
            copy_items(to, to_stride, from, from_stride, n, m->item);
            if (spend(x, n / 4))
                return 1;
        }
        return 0;
    }
    if (axis == m->axes - 2 && m->from_stride[axis] == m->item && m->to_stride[axis + 1] == m->item)
        return transpose(m, x, axis, to, from);
    if (axis == AXES - 2 || axis == m->axes - 2) {
        const ptrdiff_t n = m->shape[axis + 1];
        if (n <= PIECE) {       /* work is counted once for many short lines */
            ptrdiff_t counted = 0;
            for (ptrdiff_t i = 0; i < m->shape[axis]; i++) {
                copy_items(to + i * m->to_stride[axis], m->to_stride[axis + 1], from + i * m->from_stride[axis],
                           m->from_stride[axis + 1], n, m->item);
                if ((counted += n) >= PIECE) {
                    if (spend(x, counted / 4))
                        return 1;
                    counted = 0;
                }
            }
            return spend(x, counted / 4);
        }
    }
    for (ptrdiff_t i = 0; i < m->shape[axis]; i++)
        if (copy_axes(m, x, axis + 1, to + i * m->to_stride[axis], from + i * m->from_stride[axis]))
            return 1;
    return 0;
}

void rnnfast_copy(const command *c, const context *x)
{
    const copy_command *m = (const copy_command *)c;
    copy_axes(m, x, 0, address_of(x, m->to), address_of(x, m->from));
}

static int64_t index_at(const gather_command *m, const void *index, ptrdiff_t i)
{
    /* volatile: an index is read once, as another thread may write an input */
    return m->index_item == 4 ? ((const volatile int32_t *)index)[i] : ((const volatile int64_t *)index)[i];
}

void rnnfast_gather(const command *c, const context *x)
{
    const gather_command *m = (const gather_command *)c;
    const void *index = address_of(x, m->index);
    int64_t *status = address_of(x, m->status);
    char *to = address_of(x, m->to);
    const char *from = address_of(x, m->from);
    int64_t low = 0, high = 0;
    for (ptrdiff_t i = 0; i < m->count; i++) {
        int64_t at = index_at(m, index, i);
        low = at < low ? at : low;
        high = at > high ? at : high;
        at = at < -m->limit || at >= m->limit ? 0 : at < 0 ? at + m->limit : at;
        char *q = to + (m->scatters ? at : i) * m->to_stride;
        const char *p = from + (m->scatters ? i : at) * m->from_stride;
        for (ptrdiff_t o = 0; o < m->outer;) {
            const ptrdiff_t end = piece_end(o, m->outer);
            if (m->bytes == 4)
                for (; o < end; o++)
                    memcpy(q + o * m->to_outer, p + o * m->from_outer, 4);
            else
                for (; o < end; o++)
                    if (copy_bytes(x, q + o * m->to_outer, p + o * m->from_outer, m->bytes))
                        return;
            if (end < m->outer && spend(x, PIECE))
                return;
        }
        if (spend(x, m->outer * (4 + m->bytes / 16)))
            return;
    }
    status[0] = low < -m->limit || high >= m->limit;
    status[1] = low < -m->limit ? low : high;
}

static int64_t integer_at(ptrdiff_t item, const void *p)
{
    switch (item) {
    case INTEGER_BOOL: return *(const uint8_t *)p != 0;
    case INTEGER_UINT8: return *(const uint8_t *)p;
    case INTEGER_INT8: return *(const int8_t *)p;
    case INTEGER_INT32: return *(const int32_t *)p;
    }
    return *(const int64_t *)p;
}

static void integer_to(ptrdiff_t item, void *p, int64_t value)
{
    switch (item) {
    case INTEGER_BOOL: *(uint8_t *)p = value != 0; break;
    case INTEGER_UINT8: *(uint8_t *)p = (uint8_t)value; break;
    case INTEGER_INT8: *(int8_t *)p = (int8_t)value; break;
    case INTEGER_INT32: *(int32_t *)p = (int32_t)value; break;
    default: *(int64_t *)p = value;
    }
}

/* Return code(a, b), which is not I_SELECT; sums, differences, products and -2^63 / -1 wrap around. */
static int64_t integer_result(ptrdiff_t code, int64_t a, int64_t b)
{
    switch (code) {
    case I_ADD: return (int64_t)((uint64_t)a + (uint64_t)b);
    case I_SUB: return (int64_t)((uint64_t)a - (uint64_t)b);
    case I_MUL: return (int64_t)((uint64_t)a * (uint64_t)b);
    case I_LT: return a < b;
    case I_LE: return a <= b;
    case I_EQ: return a == b;
    case I_DIV: return b == 0 ? 0 : b == -1 ? (int64_t)-(uint64_t)a : a / b;
    case I_MOD: return b == 0 || b == -1 ? 0 : a % b + (a % b != 0 && (a < 0) != (b < 0) ? b : 0);
    case I_FMOD: return b == 0 || b == -1 ? 0 : a % b;
    case I_MIN: return a < b ? a : b;
    case I_MAX: return a > b ? a : b;
    case I_AND: return a & b;
    case I_OR: return a | b;
    case I_XOR: return a ^ b;
    }
    return a;
}

/* The places of an integer_command at one index of its outer axes. */
typedef struct {
    char *to;
    const char *a, *b, *c;
} integer_places;

static integer_places integers_at(const integer_command *m, integer_places p, ptrdiff_t axis, ptrdiff_t i)
{
    return (integer_places){ p.to + i * m->to_stride[axis], p.a + i * m->a_stride[axis], p.b + i * m->b_stride[axis],
                             p.c + i * m->c_stride[axis] };
}

/* Compute the axes from `axis` on. Returns whether the call was stopped. */
static int integer_axes(const integer_command *m, const context *x, ptrdiff_t axis, integer_places p, int64_t *status)
{
    const int last = axis >= AXES - 1 || axis == m->axes - 1, selects = m->code == I_SELECT;
    const int divides = status && m->code >= I_DIV && m->code <= I_FMOD;
    for (ptrdiff_t i = 0; i < m->shape[axis]; i++) {
        const integer_places q = integers_at(m, p, axis, i);
        if (!last) {
            if (integer_axes(m, x, axis + 1, q, status))
                return 1;
            continue;
        }
        if (selects) {
            integer_to(m->to_item, q.to, integer_at(m->item, *q.c ? q.a : q.b));
        } else {
            const int64_t b = integer_at(m->item, q.b);
            if (divides && b == 0)
                status[0] = 1;
            integer_to(m->to_item, q.to, integer_result(m->code, integer_at(m->item, q.a), b));
        }
        if (i % TILE == TILE - 1 && spend(x, 4 * TILE))
            return 1;
    }
    return last && spend(x, m->shape[axis] % TILE * 4);
}

void rnnfast_integer(const command *c, const context *x)
{
    const integer_command *m = (const integer_command *)c;
    const integer_places p = {
        address_of(x, m->to), address_of(x, m->a), address_of(x, m->b), address_of(x, m->c),
    };
    int64_t *status = m->status.buffer < 0 ? NULL : address_of(x, m->status);
    if (status)
        status[0] = status[1] = 0;
    integer_axes(m, x, 0, p, status);
}

/* n items, `stride` bytes apart, of code(before, x); before and to may be one. */
static void run_across(const running_command *m, ptrdiff_t n, char *to, ptrdiff_t to_stride, const char *before,
                       const char *x, ptrdiff_t x_stride)
{
    if (m->item == ORDER_FLOAT32) {
        for (ptrdiff_t i = 0; i < n; i++) {
            const float a = *(const float *)(before + i * to_stride), b = *(const float *)(x + i * x_stride);
            *(float *)(to + i * to_stride) = m->code == I_ADD ? a + b : a * b;
        }
        return;
    }
    for (ptrdiff_t i = 0; i < n; i++)
        integer_to(m->item, to + i * to_stride,
                   integer_result(m->code, integer_at(m->item, before + i * to_stride),
                                  integer_at(m->item, x + i * x_stride)));
}

/* The results from first to last of one line of the axis, of which that before the first is there. */
static void run_along(const running_command *m, ptrdiff_t first, ptrdiff_t last, char *to, const char *x)
{
    const ptrdiff_t to_step = m->to_step, x_step = m->x_step;
    const char *before = to + (first - 1) * to_step;
    if (m->item == ORDER_FLOAT32) {
        float y = *(const float *)before;
        for (ptrdiff_t k = first; k < last; k++) {
            const float value = *(const float *)(x + k * x_step);
            y = m->code == I_ADD ? y + value : y * value;
            *(float *)(to + k * to_step) = y;
        }
        return;
    }
    int64_t y = integer_at(m->item, before);
    for (ptrdiff_t k = first; k < last; k++) {
        y = integer_result(m->code, y, integer_at(m->item, x + k * x_step));
        integer_to(m->item, to + k * to_step, y);
    }
}

/* Compute the axes from `axis` on. Returns whether the call was stopped. */
static int running_axes(const running_command *m, const context *c, ptrdiff_t axis, char *to, const char *x)
{
    static const ptrdiff_t bytes[] = {
        [INTEGER_BOOL] = 1, [INTEGER_UINT8] = 1, [INTEGER_INT8] = 1, [INTEGER_INT32] = 4, [INTEGER_INT64] = 8,
        [ORDER_FLOAT32] = 4,
    };
    const ptrdiff_t n = m->shape[axis];
    if (axis < AXES - 1 && axis < m->axes - 1) {
        for (ptrdiff_t i = 0; i < n; i++)
            if (running_axes(m, c, axis + 1, to + i * m->to_stride[axis], x + i * m->x_stride[axis]))
                return 1;
        return 0;
    }
    for (ptrdiff_t i = 0; i < n; i++)
        memcpy(to + i * m->to_stride[axis], x + i * m->x_stride[axis], (size_t)bytes[m->item]);
    for (ptrdiff_t k = 1; k < m->n;) {
        const ptrdiff_t last = n == 1 ? piece_end(k, m->n) : k + 1;
        char *to_k = to + k * m->to_step;
        if (n == 1)
            run_along(m, k, last, to, x);
        else
            run_across(m, n, to_k, m->to_stride[axis], to_k - m->to_step, x + k * m->x_step, m->x_stride[axis]);
        if (spend(c, 4 * n * (last - k)))
            return 1;
        k = last;
    }
    return spend(c, n);
}

void rnnfast_running(const command *c, const context *x)
{
    const running_command *m = (const running_command *)c;
    running_axes(m, x, 0, address_of(x, m->to), address_of(x, m->x));
}

/* Return an integer that sorts as the item does: items with larger keys come later. */
static int64_t order_key(const order_command *m, const char *p)
{
    int64_t key;
    if (m->item == ORDER_FLOAT32) {
        float value;
        int32_t bits;
        memcpy(&value, p, sizeof value);
        memcpy(&bits, p, sizeof bits);
        if (value != value)
            return m->nan_first || m->largest ? INT64_MIN : INT64_MAX;
        key = bits == INT32_MIN ? 0 : bits < 0 ? bits ^ INT32_MAX : bits;      /* -0 is 0, but a denormal is not */
    } else
        key = integer_at(m->item, p);
    return m->largest ? ~key : key;
}

typedef struct {
    int64_t key, place;
} ordered;

enum { ORDER_COST = 4, MERGED = 1 << 16 };    /* of an item; items that are merged before the work is counted */

/* Sort n items by key, equal ones by place, with merges between `from` and `to`. Returns the one that holds the
 * result, or NULL if the call was stopped. */
static const ordered *merge_sorted(const context *x, ordered *from, ordered *to, ptrdiff_t n)
{
    for (ptrdiff_t run = 1; run < n; run *= 2) {
        for (ptrdiff_t start = 0; start < n; start += 2 * run) {
            const ptrdiff_t middle = start + run < n ? start + run : n, end = middle + run < n ? middle + run : n;
            for (ptrdiff_t i = start, j = middle, at = start; at < end;) {
                const ptrdiff_t pause = end - at < MERGED ? end : at + MERGED;
                for (; at < pause; at++)
                    to[at] = j >= end || (i < middle && from[i].key <= from[j].key) ? from[i++] : from[j++];
                if (run >= MERGED && spend(x, ORDER_COST * MERGED))
                    return NULL;
            }
        }
        if (run < MERGED && spend(x, ORDER_COST * n))
            return NULL;
        ordered *other = from;
        from = to;
        to = other;
    }
    return from;
}

/* Find the first k items of one row. Returns whether the call was stopped. */
static int order_row(const order_command *m, const context *context, const char *x, char *values, char *places,
                     ordered *memory)
{
    const ordered *first = memory;
    for (ptrdiff_t i = 0; i < m->n; i++) {
        const ordered item = { order_key(m, x + i * m->x_stride), i };
        if (m->k > 1)
            memory[i] = item;
        else if (i == 0 || item.key < memory->key || (m->higher && item.key == memory->key))
            *memory = item;
        if (i % PIECE == PIECE - 1 && spend(context, PIECE))
            return 1;
    }
    if (m->k > 1)
        first = merge_sorted(context, memory, memory + m->n, m->n);
    if (!first)
        return 1;
    const ptrdiff_t bytes = m->item == INTEGER_INT64 ? 8 : m->item == ORDER_FLOAT32 || m->item == INTEGER_INT32 ? 4 : 1;
    for (ptrdiff_t i = 0; i < m->k; i++) {
        *(int64_t *)(places + i * m->places_stride) = first[i].place;
        if (m->values.buffer >= 0)
            memcpy(values + i * m->values_stride, x + first[i].place * m->x_stride, (size_t)bytes);
        if (i % PIECE == PIECE - 1 && spend(context, PIECE))
            return 1;
    }
    return spend(context, ORDER_COST * m->n);
}

/* Find them in all rows of the axes from `axis` on. Returns whether the call was stopped. */
static int order_axes(const order_command *m, const context *context, ptrdiff_t axis, const char *x, char *values,
                      char *places, ordered *memory)
{
    if (axis >= AXES || axis == m->axes)
        return order_row(m, context, x, values, places, memory);
    for (ptrdiff_t i = 0; i < m->shape[axis]; i++)
        if (order_axes(m, context, axis + 1, x + i * m->x_outer[axis], values + i * m->values_outer[axis],
                       places + i * m->places_outer[axis], memory))
            return 1;
    return 0;
}

void rnnfast_order(const command *c, const context *x)
{
    const order_command *m = (const order_command *)c;
    char *places = address_of(x, m->places);
    order_axes(m, x, 0, address_of(x, m->x), m->values.buffer < 0 ? places : address_of(x, m->values), places,
               address_of(x, m->memory));
}

void rnnfast_clear_statuses(const command *c, const context *x)
{
    const elementwise_command *m = (const elementwise_command *)c;
    const instruction *q = (const instruction *)(m->in + m->inputs);
    for (ptrdiff_t i = 0; i < m->instructions; i++)
        if (q[i].status.buffer >= 0)
            memset(address_of(x, q[i].status), 0, 2 * sizeof(int64_t));
}

void rnnfast_elementwise(const command *c, const context *x)
{
    rnnfast_clear_statuses(c, x);
    x->isa->elementwise(c, x);
}

void rnnfast_depthwise(const command *c, const context *x)
{
    x->isa->depthwise(c, x);
}

void rnnfast_reduce(const command *c, const context *x)
{
    x->isa->reduce(c, x);
}

void rnnfast_rows(const command *c, const context *x)
{
    x->isa->rows(c, x);
}

void rnnfast_pool(const command *c, const context *x)
{
    x->isa->pool(c, x);
}
