/* The loop over the commands of a program, and those of them that move data: the same on every instruction set. */
#include "kernels.h"
#include "program.h"

#include <string.h>

void rnnfast_execute(const ptrdiff_t *program, ptrdiff_t words, const context *x)
{
    for (const ptrdiff_t *p = program; p < program + words; p += ((const command *)p)->words)
        ((const command *)p)->run((const command *)p, x);
}

#define ITEMS_LOOP(type)                                                                                             \
    for (ptrdiff_t i = 0; i < n; i++)                                                                                \
        *(type *)(to + i * to_stride) = *(const type *)(from + i * from_stride);                                     \
    break;

static void copy_items(char *to, ptrdiff_t to_stride, const char *from, ptrdiff_t from_stride, ptrdiff_t n,
                       ptrdiff_t item)
{
    if (to_stride == item && from_stride == item) {
        memcpy(to, from, (size_t)(n * item));
        return;
    }
    switch (item) {
    case 1: ITEMS_LOOP(uint8_t)
    case 2: ITEMS_LOOP(uint16_t)
    case 4: ITEMS_LOOP(uint32_t)
    case 8: ITEMS_LOOP(uint64_t)
    }
}

static void copy_axes(const copy_command *m, ptrdiff_t axis, char *to, const char *from)
{
    if (axis >= AXES - 1 || axis == m->axes - 1) {
        copy_items(to, m->to_stride[axis], from, m->from_stride[axis], m->shape[axis], m->item);
        return;
    }
    for (ptrdiff_t i = 0; i < m->shape[axis]; i++)
        copy_axes(m, axis + 1, to + i * m->to_stride[axis], from + i * m->from_stride[axis]);
}

void rnnfast_copy(const command *c, const context *x)
{
    const copy_command *m = (const copy_command *)c;
    copy_axes(m, 0, address_of(x, m->to), address_of(x, m->from));
}

void rnnfast_elementwise(const command *c, const context *x)
{
    x->isa->elementwise(c, x);
}

void rnnfast_depthwise(const command *c, const context *x)
{
    x->isa->depthwise(c, x);
}
