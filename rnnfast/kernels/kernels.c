/* All kernels. This file is compiled once for each instruction set, with ISA defined as the name of the set. */
#include "cells.h"
#include "convolution.h"
#include "depthwise.h"
#include "elementwise.h"
#include "gradients.h"
#include "optimizer.h"
#include "pooling.h"
#include "reduce.h"

static unsigned flush_denormals(void) { return v_flush_denormals(); }
static void restore_mode(unsigned mode) { v_restore_mode(mode); }

#define NAME(isa) NAME_(isa)
#define NAME_(isa) rnnfast_kernels_##isa
#define TEXT(isa) TEXT_(isa)
#define TEXT_(isa) #isa

extern const kernels NAME(ISA);
const kernels NAME(ISA) = {
    TEXT(ISA), matmul_kernel, cell_step_kernel, gru_gates_kernel, gru_output_kernel, accumulate_kernel,
    cell_back_kernel, transpose_kernel, unary_kernel, adam_kernel,
    elementwise_kernel, depthwise_kernel, reduce_kernel, rows_kernel, pool_kernel, convolution_kernel,
    flush_denormals, restore_mode,
};
