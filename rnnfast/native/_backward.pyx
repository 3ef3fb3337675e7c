"""Backward through one recurrent layer, in float32: what forward records, and the time loop in the other direction.

The steps of a row are taken from its last to its first. The gradient of h' is dy + dh + dg . R, where dg are the
gradients of the gates of the step after it; like forward, this product reads all recurrent weights at every step. The
gradients of weights and inputs are computed for a chunk of steps at once: dW += dg^T . x, dR += dg^T . h, dx = dg . W,
with x and h packed like weights. The packed kernel is as fast as BLAS here (0.9 to 1.4 of OpenBLAS's rate for 100 to
3200 rows and 128 to 1024 columns), and threads divide its outputs, so that the bits do not depend on the number of
threads.

For each step of a row, forward records these vectors of H floats, beside references to x, y and the initial states:
    LSTM  i o f g c          GRU  z r n and W_hn h + b_hn; z r n with linear_before_reset=0          RNN  nothing
"""
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

cimport numpy as cnp

import numpy as np

from rnnfast.native import _engine

from rnnfast.native._arenas cimport block, memory_of
from rnnfast.native._engine cimport *
from rnnfast.native._interrupts cimport begin, finish
from rnnfast.native._kernels cimport *

cnp.import_array()

cdef enum:
    CHUNK_ROWS = 256            # rows of dg in a chunk: with their transpose and the packed inputs they stay in a cache


cdef class Gradient:
    """The weights of one Cell, packed for backward: from torch's layout, without transposing them."""
    cdef Matrix input, recurrent, candidate, project

    def __init__(self, Cell q, weight_ih, weight_hh, weight_hr=None):
        H = q.hidden_size
        self.input = Matrix(weight_ih, matmul="packed")
        if q.d.q.kind == CELL_GRU:
            weight_hh = np.concatenate([weight_hh[2 * H:], weight_hh[:2 * H]])
        elif q.d.q.kind == CELL_GRU_RESET_FIRST:
            self.candidate = Matrix(weight_hh[2 * H:], matmul="packed")
            weight_hh = weight_hh[:2 * H]
        self.recurrent = Matrix(weight_hh, matmul="packed")
        if weight_hr is not None:
            self.project = Matrix(weight_hr, matmul="packed")


cdef struct Job:
    # One direction of a layer backward. Absent arrays are NULL; no result aliases another array.
    const matrix *input
    const matrix *recurrent
    const matrix *candidate
    const matrix *project
    int kind                    # BACK_* of the gates
    Py_ssize_t T, B, K, H, O    # K: the number of inputs
    Py_ssize_t padded, widest   # the larger of H and O, and the largest of H, O and K, in whole blocks
    Py_ssize_t columns, G       # columns of dg; G: gates, so that W and R have G H rows
    Py_ssize_t into             # first column of dg that belongs to W; R's begin at 0, except the candidate's
    # [T, B, ..] with strides in floats
    const float *x
    const float *y
    const float *dy
    Py_ssize_t x_t, x_b, y_t, y_b, dy_t, dy_b
    float *dx                   # [T, B, I] contiguous, or NULL
    bint add                    # add to dx instead of writing it
    const float *h0
    const float *c0
    const float *dh             # gradients of the last states: [B, O], [B, H]
    const float *dc
    float *dh0
    float *dc0
    float *dw                   # [G H, K]
    float *dr                   # [G H, O]
    float *db                   # [columns]
    float *dv                   # [O, H]
    const float *saved          # [rows of all steps, width], from forward
    Py_ssize_t width
    const Py_ssize_t *order     # ragged: as in the engine's Batch
    const Py_ssize_t *counts
    const Py_ssize_t *lens
    bint reverse
    team *crew
    interrupt *call
    int threads
    bint by_rows                # threads divide the rows, otherwise the panels of each step
    # the current chunk
    Py_ssize_t first, last      # its steps: first <= s < last
    Py_ssize_t rows, before     # rows of its steps, and rows of all steps before it
    # workspace
    Py_ssize_t ldg, ldt, room   # room: the most rows of a chunk
    float *dg                   # [room, ldg]
    float *after                # [B, ldg]: dg of the step after the chunk
    float *dgt                  # [columns, ldt]
    float *packed_x
    float *packed_h
    float *packed_u             # u packed
    float *dhs                  # [room, O], with a projection: gradients of its output
    float *dht                  # the same transposed
    float *u                    # [room, H]: o tanh(c) with a projection, r h with linear_before_reset=0
    float *dx_rows              # [room, I]
    float *dh_in                # [B, padded]: gradient of h that needs no product
    float *dcs                  # [B, padded]: gradient of c
    float *zeros                # [widest]
    float *sums                 # [O], not used further
    # tables with a pointer to each row of the chunk: [room] each
    const float **at_x
    const float **at_h          # the output before the step
    const float **at_y
    const float **at_dy
    const float **at_c          # the cell state before it
    Py_ssize_t *at_dx           # offsets of rows in dx


cdef inline Py_ssize_t count(const Job *j, Py_ssize_t s) noexcept nogil:
    """Return the number of rows of step s."""
    return 0 if s >= j.T else j.B if j.order == NULL else j.counts[s]


cdef inline Py_ssize_t place_of(const Job *j, Py_ssize_t s) noexcept nogil:
    """Return the first row of step s in a chunk of a batch that is not ragged: in the order of time, as in x and dx."""
    return (j.last - 1 - s if j.reverse else s - j.first) * j.B


cdef inline void wait(Job *j, int part, int parts) noexcept nogil:
    """Wait for the other threads, if they share the step."""
    if parts > 1 and not j.by_rows:
        team_wait(j.crew, part, parts)


# ---------------------------------------------------------------------------------------------- steps
cdef void fill_tables(Job *j) noexcept nogil:
    """Fill the tables of a chunk's rows."""
    cdef Py_ssize_t s, i, row, t, previous, n, at = 0, step = -1 if j.reverse else 1, rows = j.before
    for s in range(j.first, j.last):
        n = count(j, s)
        if j.order == NULL:
            at = place_of(j, s)
        for i in range(n):
            row = i if j.order == NULL else j.order[i]
            t = s
            if j.reverse:
                t = (j.T if j.order == NULL else j.lens[row]) - 1 - s
            previous = t - step
            j.at_x[at] = j.x + t * j.x_t + row * j.x_b
            j.at_y[at] = j.y + t * j.y_t + row * j.y_b
            if j.dy != NULL:
                j.at_dy[at] = j.dy + t * j.dy_t + row * j.dy_b
            j.at_dx[at] = (t * j.B + row) * j.K
            if s:
                j.at_h[at] = j.y + previous * j.y_t + row * j.y_b
                j.at_c[at] = j.saved + (rows - count(j, s - 1) + i) * j.width + 4 * j.H
            else:
                j.at_h[at] = j.at_c[at] = j.zeros
                if j.h0 != NULL:
                    j.at_h[at] = j.h0 + row * j.O
                if j.c0 != NULL:
                    j.at_c[at] = j.c0 + row * j.H
            at += 1
        rows += n


cdef void back_rows(Job *j, Py_ssize_t at, Py_ssize_t saved, Py_ssize_t low, Py_ssize_t high, const float *after,
                    bint backwards, int part, int parts) noexcept nogil:
    """Go back through one step for the rows low <= i < high.

    The step's rows begin at row `at` of the chunk and at row `saved` of what forward saved. `after` is dg of the step
    after it, or NULL. `backwards` takes the last panels first.
    """
    cdef step_back s
    cdef bint gru = j.kind == BACK_GRU or j.kind == BACK_GRU_RESET_FIRST
    memset(&s, 0, sizeof(s))
    s.kind, s.m, s.rows = j.kind, j.recurrent, max(high - low, 0)
    if after != NULL:
        s.a, s.lda = after + low * j.ldg, j.ldg
    if j.dy != NULL:
        s.dy = j.at_dy + at + low
    s.ldh = j.padded
    if gru or after == NULL:
        s.dh_in = j.dh_in + low * j.padded
    s.dh, s.dc = j.dh_in + low * j.padded, j.dcs + low * j.padded
    s.h = (j.at_h if gru else j.at_y) + at + low
    s.c = j.at_c + at + low
    s.saved, s.lds = j.saved + (saved + low) * j.width, j.width
    s.dg, s.ldg = j.dg + (at + low) * j.ldg, j.ldg
    if j.project != NULL:
        s.kind, s.out, s.ldo = BACK_STATE, j.dhs + (at + low) * j.O, j.O
        active.cell_back(&s, shared(s.m, j, backwards, part, parts))
        wait(j, part, parts)
        s.kind, s.m, s.a, s.lda, s.dy, s.dh_in = j.kind, j.project, s.out, j.O, NULL, NULL
        s.out, s.ldo = j.u + (at + low) * j.H, j.H
    active.cell_back(&s, shared(s.m, j, backwards, part, parts))
    if j.candidate != NULL:
        wait(j, part, parts)
        s.kind, s.m, s.a, s.lda, s.dy, s.dh_in = BACK_GRU_CANDIDATE, j.candidate, s.dg + 2 * j.H, j.ldg, NULL, NULL
        s.out, s.ldo = j.u + (at + low) * j.H, j.H
        active.cell_back(&s, shared(s.m, j, backwards, part, parts))


cdef inline panels shared(const matrix *m, const Job *j, bint backwards, int part,
                          int parts) noexcept nogil:
    """Return part `part` of the panels. Steps alternate the order, because the last panels are still in the cache."""
    cdef panels share = share_of(m, 0, 1) if j.by_rows else share_of(m, part, parts)
    share.backwards = backwards
    return share


cdef void steps_part(void *argument, int part, int parts) noexcept nogil:
    """Do part `part` of `parts` of each step of a chunk, from the last step to the first. Without other threads this
    returns between two steps if the call is stopped.
    """
    cdef Job *j = <Job *>argument
    cdef watch own = watch_of(j.call)
    cdef Py_ssize_t s, low, high, n, known, at, rows = j.rows
    cdef const float *after = j.after
    for s in range(j.last - 1, j.first - 1, -1):
        n = count(j, s)
        rows -= n
        at = rows if j.order != NULL else place_of(j, s)
        low, high = 0, n
        if j.by_rows:
            low, high = j.B * part // parts, j.B * (part + 1) // parts
        known = min(count(j, s + 1), high)          # ragged: longer rows come first
        back_rows(j, at, j.before + rows, low, known, after, s & 1, part, parts)
        if known < high:
            back_rows(j, at, j.before + rows, max(known, low), high, NULL, s & 1, part, parts)
        after = j.dg + at * j.ldg
        wait(j, part, parts)
        if j.crew == NULL and spend(&own, <int64_t>(<double>n * j.G * j.H * j.O / 64)):
            return


# ---------------------------------------------------------------------------------------------- products of a chunk
cdef void pack_rows(const float **at, const float *a, Py_ssize_t rows, Py_ssize_t n, float *out, int part,
                    int parts) noexcept nogil:
    """Pack rows of n floats like weights [rows, n], for part `part` of the panels.

    The rows are those of the table `at` or, if it is NULL, of a[rows, n]. out does not alias them.
    """
    cdef matrix m = packed_floats(out, NULL, rows, n)
    cdef panels share = share_of(&m, part, parts)
    cdef Py_ssize_t p, i, width, used
    cdef const float *row
    cdef float *to
    for p in range(share.first, share.last):
        width = min(4, m.blocks - 4 * p) * BLOCK
        used = min(width, n - 4 * p * BLOCK)
        to = out + 4 * p * BLOCK * rows
        for i in range(rows):
            row = (a + i * n if at == NULL else at[i]) + 4 * p * BLOCK
            memcpy(to, row, used * sizeof(float))
            if used < width:
                memset(to + used, 0, (width - used) * sizeof(float))
            to += width


cdef void transpose_columns(const float *a, Py_ssize_t lda, Py_ssize_t rows, Py_ssize_t columns, float *out,
                            Py_ssize_t ldo, float *sums, int part, int parts) noexcept nogil:
    """Transpose part `part` of the columns: out[columns, ldo] = a[rows, lda]; sums[columns] += their sums."""
    cdef Py_ssize_t first = blocks_of(columns) * part // parts * BLOCK
    cdef Py_ssize_t last = min(blocks_of(columns) * (part + 1) // parts * BLOCK, columns)
    if first < last:
        active.transpose(a + first, lda, rows, last - first, out + first * ldo, ldo, sums + first)


cdef void prepare_part(void *argument, int part, int parts) noexcept nogil:
    """Do one part of the transposing and packing for the products of a chunk."""
    cdef Job *j = <Job *>argument
    transpose_columns(j.dg, j.ldg, j.rows, j.columns, j.dgt, j.ldt, j.db, part, parts)
    pack_rows(j.at_x, NULL, j.rows, j.K, j.packed_x, part, parts)
    pack_rows(j.at_h, NULL, j.rows, j.O, j.packed_h, part, parts)
    if j.u != NULL:
        pack_rows(NULL, j.u, j.rows, j.H, j.packed_u, part, parts)
    if j.project != NULL:
        transpose_columns(j.dhs, j.O, j.rows, j.O, j.dht, j.ldt, j.sums, part, parts)


cdef void weights_part(const Job *j, float *w, Py_ssize_t n, const float *a, float *c, Py_ssize_t rows, int part,
                       int parts) noexcept nogil:
    """c[rows, n] += a[rows, rows of the chunk] . w for part `part` of the rows; the first chunk sets c instead."""
    cdef matrix m = packed_floats(w, j.zeros, j.rows, n)
    cdef Py_ssize_t first = rows * part // parts
    (active.matmul if j.last == j.T else active.accumulate)(
        &m, share_of(&m, 0, 1), a + first * j.ldt, j.ldt, c + first * n, n, rows * (part + 1) // parts - first, n)


cdef void products_part(void *argument, int part, int parts) noexcept nogil:
    """Do one part of the products of a chunk, the gradients of the weights and of x, unless the call was stopped."""
    cdef Job *j = <Job *>argument
    if look_at(j.call):
        return
    cdef Py_ssize_t first = j.rows * part // parts, last = j.rows * (part + 1) // parts, i, k
    cdef Py_ssize_t of_r = j.G if j.into == 0 and j.candidate == NULL else 2, rest = (j.G - of_r) * j.H
    cdef const float *dg = j.dg + first * j.ldg + j.into
    cdef float *to
    cdef const float *row
    weights_part(j, j.packed_x, j.K, j.dgt + j.into * j.ldt, j.dw, j.G * j.H, part, parts)
    weights_part(j, j.packed_h, j.O, j.dgt + j.into * j.ldt, j.dr, of_r * j.H, part, parts)
    if j.candidate != NULL:
        weights_part(j, j.packed_u, j.H, j.dgt + 2 * j.H * j.ldt, j.dr + 2 * j.H * j.O, j.H, part, parts)
    elif rest:
        weights_part(j, j.packed_h, j.O, j.dgt, j.dr + 2 * j.H * j.O, j.H, part, parts)
    if j.project != NULL:
        weights_part(j, j.packed_u, j.H, j.dht, j.dv, j.O, part, parts)
    if j.dx == NULL:
        return
    if j.order == NULL and not j.add:
        active.matmul(j.input, share_of(j.input, 0, 1), dg, j.ldg, j.dx + j.at_dx[0] + first * j.K, j.K, last - first,
                      j.K)
        return
    active.matmul(j.input, share_of(j.input, 0, 1), dg, j.ldg, j.dx_rows + first * j.K, j.K, last - first, j.K)
    for i in range(first, last):
        to, row = j.dx + j.at_dx[i], j.dx_rows + i * j.K
        if j.add:
            for k in range(j.K):
                to[k] += row[k]
        else:
            memcpy(to, row, j.K * sizeof(float))


# ---------------------------------------------------------------------------------------------- directions
cdef void run_job(Job *j) noexcept nogil:
    """Go back through one direction over the whole batch. If the call is stopped, this returns between two parts of a
    chunk, and what it has written means nothing.
    """
    cdef Py_ssize_t i, row, t, total = 0, s
    cdef double cost = <double>j.G * j.H / 64                   # of a row and a weight of each output
    cdef watch own = watch_of(j.call)
    cdef int part, parts = max(1, <int>(max(j.room, j.B) * cost * (2 * j.K + j.O) / PIECE_COST))
    cdef bint gru = j.kind == BACK_GRU or j.kind == BACK_GRU_RESET_FIRST
    cdef step_back last
    memset(j.zeros, 0, j.widest * sizeof(float))
    memset(j.db, 0, j.columns * sizeof(float))
    if j.project != NULL:
        memset(j.sums, 0, j.O * sizeof(float))
    memset(j.dh_in, 0, j.B * j.padded * sizeof(float))
    memset(j.dcs, 0, j.B * j.padded * sizeof(float))
    for i in range(j.B):
        row = i if j.order == NULL else j.order[i]
        memcpy(j.dh_in + i * j.padded, j.dh + row * j.O, j.O * sizeof(float))
        if j.dc != NULL:
            memcpy(j.dcs + i * j.padded, j.dc + row * j.H, j.H * sizeof(float))
        if j.dx != NULL and not j.add and j.order != NULL:
            for t in range(j.lens[row], j.T):
                memset(j.dx + (t * j.B + row) * j.K, 0, j.K * sizeof(float))
    for s in range(j.T):
        total += count(j, s)
    j.last = j.T
    while j.last > 0:
        j.first, j.rows = j.last, 0
        while j.first > 0 and (j.rows == 0 or j.rows + count(j, j.first - 1) <= j.room):
            j.first -= 1
            j.rows += count(j, j.first)
        total -= j.rows
        j.before = total
        fill_tables(j)
        if j.crew == NULL:
            steps_part(j, 0, 1)
            prepare_part(j, 0, 1)
            for part in range(parts):
                products_part(j, part, parts)
        else:
            team_split(j.crew, steps_part, j)
            team_each(j.crew, ITEMS * j.threads, prepare_part, j)
            team_each(j.crew, max(parts, ITEMS * j.threads), products_part, j)
        if spend(&own, <int64_t>(j.rows * cost * (2 * j.K + 2 * j.O))):
            return
        memcpy(j.after, j.dg + (0 if j.order != NULL else place_of(j, j.first) * j.ldg),
               count(j, j.first) * j.ldg * sizeof(float))
        j.last = j.first
    memset(&last, 0, sizeof(last))
    last.kind, last.m, last.rows = BACK_STATE, j.recurrent, count(j, 0)
    last.a, last.lda = j.after, j.ldg
    last.dh_in, last.ldh = j.dh_in if gru else NULL, j.padded
    last.out, last.ldo = j.dhs, j.O
    active.cell_back(&last, share_of(last.m, 0, 1))
    for i in range(j.B):
        row = i if j.order == NULL else j.order[i]
        if i >= last.rows:
            memset(j.dh0 + row * j.O, 0, j.O * sizeof(float))
            memset(j.dcs + i * j.padded, 0, j.H * sizeof(float))
        else:
            memcpy(j.dh0 + row * j.O, j.dhs + i * j.O, j.O * sizeof(float))
        if j.dc0 != NULL:
            memcpy(j.dc0 + row * j.H, j.dcs + i * j.padded, j.H * sizeof(float))


cdef Py_ssize_t lay_out(Job *j, float *base) noexcept nogil:
    """Place the parts of the workspace one after the other from `base` on. Returns the floats that they take."""
    cdef Py_ssize_t at = 0
    at = carve(&j.dg, base, at, j.room * j.ldg)
    at = carve(&j.after, base, at, j.B * j.ldg)
    at = carve(&j.dgt, base, at, j.columns * j.ldt)
    at = carve(&j.packed_x, base, at, j.room * blocks_of(j.K) * BLOCK)
    at = carve(&j.packed_h, base, at, j.room * blocks_of(j.O) * BLOCK)
    at = carve(&j.dhs, base, at, j.room * j.O)
    at = carve(&j.dx_rows, base, at, j.room * j.K if j.order != NULL or j.add else 0)
    at = carve(&j.dh_in, base, at, j.B * j.padded)
    at = carve(&j.dcs, base, at, j.B * j.padded)
    at = carve(&j.zeros, base, at, j.widest)
    if j.project != NULL or j.candidate != NULL:
        at = carve(&j.packed_u, base, at, j.room * blocks_of(j.H) * BLOCK)
        at = carve(&j.u, base, at, j.room * j.H)
    if j.project != NULL:
        at = carve(&j.dht, base, at, j.O * j.ldt)
        at = carve(&j.sums, base, at, j.O)
    at = carve(<float **>&j.at_x, base, at, 2 * j.room)
    at = carve(<float **>&j.at_h, base, at, 2 * j.room)
    at = carve(<float **>&j.at_y, base, at, 2 * j.room)
    at = carve(<float **>&j.at_dy, base, at, 2 * j.room)
    at = carve(<float **>&j.at_c, base, at, 2 * j.room)
    return carve(<float **>&j.at_dx, base, at, 2 * j.room)


# The jobs of both directions.
cdef struct Jobs:
    Job each[2]


cdef void run_each(void *argument, int item, int items) noexcept nogil:
    """Run the job of one direction."""
    run_job(&(<Jobs *>argument).each[item])


cdef inline float *data(a) noexcept:
    """Return the address of an array's data, NULL for None."""
    return NULL if a is None else <float *>cnp.PyArray_DATA(a)


cdef class Tape:
    """The record of one layer: its cells, x [T, B, I], y [T, B, D, O], the initial states, the lengths and, for each
    direction, what its steps saved.
    """
    cdef tuple cells, reverse, saved
    cdef readonly object x, y
    cdef object h0, c0, lens, order, counts

    @property
    def nbytes(self):
        """The bytes of the record beyond the arguments and results of the call."""
        return sum(a.nbytes for a in self.saved)

    def backward(self, dy, dh, dc=None, dx=True, int threads=1):
        """Return the gradients of the layer's inputs and weights from those of its results.

        Args:
            dy: For each direction float32 [T, B, O], its last axis contiguous; or None.
            dh: [D, B, O], contiguous.
            dc: [D, B, H], contiguous; only for LSTM.
            dx: Whether the gradient of x is wanted.
            threads: The most threads to use.

        Returns:
            dx [T, B, I] (None with dx=False), dh0 [D, B, O], dc0 [D, B, H] (None except for LSTM), and for each
            direction a dict of the gradients of weight_ih, weight_hh, bias_ih, bias_hh and weight_hr (None if there is
            no projection), in torch's order of gates.
        """
        cdef Py_ssize_t D = len(self.cells), i, size, T, B, I, H, O, columns, G, rows
        cdef Cell q = self.cells[0]
        cdef Jobs jobs
        cdef Job *j
        cdef unsigned mode
        cdef team crew
        cdef interrupt call
        cdef Gradient g
        cdef bint lstm = q.kind == "LSTM", gru = q.kind == "GRU", apart
        T, B, I = self.x.shape
        H, O = q.hidden_size, q.output_size
        dx = np.empty((T, B, I), np.float32) if dx else None
        dh0 = np.zeros((D, B, O), np.float32)
        dc0 = np.zeros((D, B, H), np.float32) if lstm else None
        G = _engine.GATES[q.kind]
        columns = 4 * H if q.d.q.kind == CELL_GRU else G * H
        dw = np.empty((D, G * H, I), np.float32)
        dr = np.empty((D, G * H, O), np.float32)
        db = np.empty((D, columns), np.float32)
        dv = None if q.d.project == NULL else np.empty((D, O, H), np.float32)
        cdef Py_ssize_t[::1] lens = self.lens, order = self.order, counts = self.counts
        if T * B == 0:
            for a in (dw, dr, db) if dv is None else (dw, dr, db, dv):
                a[:] = 0
            return dx, dh0, dc0, self.named(dw, dr, db, dv)
        rows = T * B if self.lens is None else int(np.sum(self.lens))
        threads = 1 if 3 * D * product_cost(q.d.r, rows) < SHARED_COST and not forced else useful_threads(threads)
        apart = D > 1 and threads > 1
        second = np.empty_like(dx) if apart and dx is not None else None
        keep = [readable(self.x), self.y, dx, second]
        memset(&jobs, 0, sizeof(jobs))
        for i in range(D):
            j = &jobs.each[i]
            g = self.cells[i].gradient
            keep.append(g)
            j.input, j.recurrent = &g.input.w.m, &g.recurrent.w.m
            j.candidate = NULL if g.candidate is None else &g.candidate.w.m
            j.project = NULL if g.project is None else &g.project.w.m
            j.T, j.B, j.K, j.H, j.O, j.G = T, B, I, H, O, G
            j.padded, j.widest = blocks_of(max(H, O)) * BLOCK, blocks_of(max(H, O, I)) * BLOCK
            j.kind = (BACK_LSTM if lstm else BACK_GRU if q.d.q.kind == CELL_GRU else BACK_GRU_RESET_FIRST if gru else
                      BACK_TANH if q.d.q.act[0].kind == ACT_TANH else BACK_RELU)
            j.columns, j.into = columns, columns - G * H
            x, y = keep[0], self.y[:, :, i]
            j.x, j.x_t, j.x_b = data(x), cnp.PyArray_STRIDE(x, 0) // 4, cnp.PyArray_STRIDE(x, 1) // 4
            j.y, j.y_t, j.y_b = data(y), cnp.PyArray_STRIDE(y, 0) // 4, cnp.PyArray_STRIDE(y, 1) // 4
            if dy is not None:
                a = readable(dy[i])
                keep.append(a)
                j.dy, j.dy_t, j.dy_b = data(a), cnp.PyArray_STRIDE(a, 0) // 4, cnp.PyArray_STRIDE(a, 1) // 4
            j.dx, j.add = data(second if apart and i else dx), i > 0 and not apart
            if self.h0 is not None:
                j.h0 = data(self.h0) + i * B * O
            if self.c0 is not None:
                j.c0 = data(self.c0) + i * B * H
            j.dh, j.dh0 = data(dh) + i * B * O, data(dh0) + i * B * O
            if lstm:
                j.dc, j.dc0 = data(dc) + i * B * H, data(dc0) + i * B * H
            j.dw, j.dr, j.db = data(dw) + i * G * H * I, data(dr) + i * G * H * O, data(db) + i * columns
            if dv is not None:
                j.dv = data(dv) + i * O * H
            j.saved, j.width = data(self.saved[i]), q.saved_size
            j.reverse = self.reverse[i]
            if lens is not None:
                j.lens, j.order, j.counts = &lens[0], &order[0], &counts[0]
            j.room = max(CHUNK_ROWS, B)
            j.ldg, j.ldt = (blocks_of(columns) + 1) * BLOCK, (blocks_of(j.room) + 1) * BLOCK
            j.threads = threads
            j.by_rows = lens is None and B >= SHARED_ROWS * threads and q.d.r.m.k * columns <= SHARED_FLOATS
        size = lay_out(&jobs.each[D - 1], NULL)
        cdef block *memory = workspaces.borrow(D * size * sizeof(float))
        for i in range(D):
            lay_out(&jobs.each[i], <float *>memory_of(memory) + i * size)
            jobs.each[i].call = &call
        begin(&call, 0)
        with nogil:
            mode = active.flush_denormals()
            team_open(&crew, threads, False)
            if apart:
                team_each(&crew, D, run_each, &jobs)
            else:
                for i in range(D):
                    jobs.each[i].crew = &crew if threads > 1 else NULL
                    run_job(&jobs.each[i])
            if apart and jobs.each[0].dx != NULL:
                for i in range(T * B * I):
                    jobs.each[0].dx[i] += jobs.each[1].dx[i]
            team_close(&crew)
            active.restore_mode(mode)
        workspaces.give_back(memory)
        finish(&call)
        return dx, dh0, dc0, self.named(dw, dr, db, dv)

    cdef list named(self, dw, dr, db, dv):
        """Return a dict of the gradients of the weights for each direction."""
        cdef Cell q = self.cells[0]
        H = q.hidden_size
        results = []
        for i in range(len(self.cells)):
            b_ih = db[i, -_engine.GATES[q.kind] * H:]
            b_hh = np.concatenate([b_ih[:2 * H], db[i, :H]]) if q.d.q.kind == CELL_GRU else b_ih.copy()
            results.append({"weight_ih": dw[i], "weight_hh": dr[i], "bias_ih": b_ih, "bias_hh": b_hh,
                            "weight_hr": None if dv is None else dv[i]})
        return results


def record(tuple cells, tuple reverse, x, y, initial_h=None, initial_c=None, sequence_lens=None, int threads=1):
    """Run `_engine.recurrent` and record it. Returns Y_h, Y_c and a Tape.

    Here y is [T, B, D, O]. The cells must be differentiable and have their `gradient`.
    """
    cdef Tape tape = Tape()
    cdef Cell q = cells[0]
    T, B = x.shape[:2]
    tape.cells, tape.reverse, tape.x, tape.y = cells, reverse, x, y
    tape.lens, tape.order, tape.counts = sort_lengths(sequence_lens, T, B)
    rows = T * B if tape.lens is None else np.sum(tape.lens)
    tape.saved = tuple([np.empty((rows, q.saved_size), np.float32) for _ in cells])
    tape.h0 = None if initial_h is None else np.ascontiguousarray(initial_h, np.float32)
    tape.c0 = None if initial_c is None else np.ascontiguousarray(initial_c, np.float32)
    y_h, y_c = _engine.recurrent(cells, reverse, x, y.swapaxes(1, 2), tape.h0, tape.c0, sequence_lens, threads,
                                 tape.saved)
    return y_h, y_c, tape
