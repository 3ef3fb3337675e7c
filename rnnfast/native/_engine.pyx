"""The engine: the cells of recurrent layers with their packed weights, and the time loop, which runs without the GIL.

Everything is float32. The callers (rnnfast.nn, rnnfast.onnx) check shapes; this module checks again only what would
crash. The size of a workspace depends on the batch and the layer, not on the length of the sequences; later calls reuse
it.
"""
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

cimport cython
cimport numpy as cnp

import numpy as np

from rnnfast.native._kernels import ACTIVATIONS

from rnnfast.native._arenas cimport Arenas, block, memory_of
from rnnfast.native._interrupts cimport begin, finish
from rnnfast.native._kernels cimport *

cnp.import_array()

cdef enum:
    SPARE_BYTES = 1 << 26       # of the workspaces of all layers
    TALL_STEP = 64              # least rows of a step that make a tall product of their own: LSTM H256 T50 B128 0.92
    PHASE_COST = 700            # least nanoseconds of a step per thread that shares it: waiting for others takes 200
    LONG_PHASE = 40000          # nanoseconds of the steps of a phase, after which threads that arrive late join
    # Input projections of so many floats are computed at once: they stay in the second-level cache. If these are too
    # few rows for one pass over W, it is PROJECTION_ROWS rows (H768 T500 B1 takes 0.95 of the time), but no more than
    # PROJECTION_INPUTS floats of inputs, which stay in that cache too (GRU H768 I3072 B3: 0.97).
    PROJECTION_FLOATS = 65536
    PROJECTION_ROWS = 128
    PROJECTION_INPUTS = 131072


# The workspaces of all calls of layers.
cdef Arenas workspaces = Arenas(SPARE_BYTES)
WORKSPACES = workspaces


# ---------------------------------------------------------------------------------------------- cells
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


cdef class Cell:
    """One direction of one recurrent layer with packed weights. It is immutable and may be shared by threads.

    The kind is "RNN", "LSTM" or "GRU". W [G*H, I], R [G*H, H], B [2*G*H] or None and P [3*H] or None are in ONNX's gate
    order (LSTM i o f c, GRU z r h). `activations` has a triple (name, alpha, beta) for each of f, g and h that the kind
    has. A projection [P, H], for LSTM only, makes the output P wide; then R is [G*H, P]. `weight_type` is that of W, R
    and the projection (see Matrix). `gradient` holds the same weights packed for backward, or None until they are
    needed.
    """
    def __init__(self, kind, W, R, B=None, P=None, *, activations, clip=None, input_forget=False,
                 linear_before_reset=False, projection=None, matmul=None, weight_type=None):
        cdef Py_ssize_t i, padded
        cdef Direction *d = &self.d
        gates = GATES[kind]
        W, R = readable(W), readable(R)
        H = W.shape[0] // gates
        self.kind, self.input_size, self.hidden_size, self.output_size = kind, W.shape[1], H, R.shape[1]
        reset_first = kind == "GRU" and not linear_before_reset
        if W.shape != (gates * H, self.input_size) or R.shape != (gates * H, self.output_size):
            raise ValueError(f"W {W.shape} and R {R.shape} do not fit {gates} gates")
        if self.output_size != (H if projection is None else projection.shape[0]):
            raise ValueError(f"R {R.shape} does not fit hidden_size {H} and the projection")
        B = np.zeros(2 * gates * H, np.float32) if B is None else np.ascontiguousarray(B, dtype=np.float32)
        if B.shape != (2 * gates * H,):
            raise ValueError(f"B has shape {B.shape}, expected ({2 * gates * H},)")
        bias = B[:gates * H] + B[gates * H:]
        candidate_bias = np.zeros(H, np.float32)
        if kind == "GRU" and linear_before_reset:
            bias[2 * H:] = B[2 * H:3 * H]
            candidate_bias = B[5 * H:]

        cdef Matrix x, r, x_candidate = None, r_candidate = None, project = None
        if reset_first:
            x = Matrix(W[:2 * H].T, bias[:2 * H], matmul=matmul, weight_type=weight_type, gates=2)
            x_candidate = Matrix(W[2 * H:].T, bias[2 * H:], matmul=matmul, weight_type=weight_type)
            r = Matrix(R[:2 * H].T, matmul=matmul, weight_type=weight_type, gates=2)
            r_candidate = Matrix(R[2 * H:].T, matmul=matmul, weight_type=weight_type)
            d.q.r_candidate = r_candidate.w.m
            d.x_candidate, d.r_candidate = &x_candidate.w, &r_candidate.w
        else:
            x = Matrix(W.T, bias, matmul=matmul, weight_type=weight_type, gates=gates)
            r = Matrix(R.T, matmul=matmul, weight_type=weight_type, gates=gates)
        d.q.r = r.w.m
        d.x, d.r = &x.w, &r.w
        if projection is not None:
            project = Matrix(readable(projection).T, matmul=matmul, weight_type=weight_type)
            d.project = &project.w
        self.rounded = weight_type is not None
        self.matrices = tuple(m for m in (x, x_candidate, r, r_candidate, project) if m is not None)
        padded = blocks_of(H) * BLOCK
        d.H, d.O, d.padded = H, self.output_size, padded
        d.q.kind = (CELL_RNN if kind == "RNN" else CELL_LSTM if kind == "LSTM" else
                    CELL_GRU_RESET_FIRST if reset_first else CELL_GRU)
        d.q.hidden_size = H
        d.q.clip = INFINITY if clip is None else clip
        d.q.input_forget = input_forget
        for i, (name, alpha, beta) in enumerate(activations):
            d.q.act[i].kind, d.q.act[i].alpha, d.q.act[i].beta = ACTIVATIONS[name], alpha, beta
        names = tuple(name for name, _, _ in activations)
        d.q.fused = (clip is None and P is None and not input_forget and
                     names in (("Tanh",), ("Relu",), ("Sigmoid", "Tanh"), ("Sigmoid", "Tanh", "Tanh")))
        d.q.bounded = d.q.fused and names != ("Relu",) and projection is None

        self.extra = AlignedFloats(4 * padded)
        extra = np.zeros((4, padded), np.float32)
        extra[0, :H] = candidate_bias
        if P is not None:
            extra[1:, :H] = np.asarray(P, np.float32).reshape(3, H)
        cdef const float[:, ::1] values = extra
        if padded:
            memcpy(self.extra.p, &values[0, 0], 4 * padded * sizeof(float))
        d.q.candidate_bias = self.extra.p
        d.q.peephole = NULL if P is None else self.extra.p + padded

    @property
    def gradient(self):
        """The weights packed for backward. Threads may set it at the same time: what is there first stays."""
        with cython.critical_section(self):
            return self.for_backward

    @gradient.setter
    def gradient(self, value):
        with cython.critical_section(self):
            if self.for_backward is None:
                self.for_backward = value

    @property
    def blas(self):
        """True if BLAS computes the products."""
        return bool(self.d.r.blas)

    @property
    def saved_size(self):
        """The number of floats that a step saves for each row for backward."""
        return self.d.H * (SAVED_LSTM if self.d.q.kind == CELL_LSTM else SAVED_GRU if self.d.q.kind == CELL_GRU else
                           SAVED_GRU_RESET_FIRST if self.d.q.kind == CELL_GRU_RESET_FIRST else 0)

    @property
    def differentiable(self):
        """True if it has float32 weights, the default activations (or an RNN's Relu) and no clip, peepholes or
        input_forget.
        """
        return bool(self.d.q.fused) and not self.rounded

    @property
    def nbytes(self):
        """The bytes of the packed weights."""
        return sum(m.nbytes for m in self.matrices) + 4 * self.extra.size


# ---------------------------------------------------------------------------------------------- steps
# The memory that one direction needs for a batch; parts that are not needed are empty.
cdef struct Workspace:
    float *xg
    float *xg_candidate
    float *packed               # ragged: the rows of x for `steps` steps
    float *h                    # ragged: two outputs [B, O], used alternately
    float *zeros                # [O]
    float *c
    float *z
    float *rh
    float *hr
    float *unprojected
    Py_ssize_t steps            # how many steps' input projections are computed at once


cdef struct Share:
    # One thread's part of every step.
    int part, parts
    panels r, r_candidate
    team *crew


cdef inline void wait(Share *own) noexcept nogil:
    """Wait until all threads that share the step have come this far."""
    if own.parts > 1:
        team_wait(own.crew, own.part, own.parts)


cdef void run_step(const Direction *d, step *s, Workspace *w, Share *own) noexcept nogil:
    """Compute one thread's part of a step. s has the inputs or their projections, h, c, h_out and scratch memory."""
    cdef float *h = s.h_out
    cdef const float *h_prev = s.h
    cdef Py_ssize_t ldo = s.ldo, ldh_prev = s.ldh, columns = d.q.r.blocks * BLOCK
    if d.project != NULL:
        s.h_out, s.ldo = w.unprojected, d.H
    if d.r.blas:
        product(d.r, s.h, s.ldh, w.hr, columns, s.rows, columns, False, 0, 1, NULL)
        s.hr = w.hr
    if d.q.kind != CELL_GRU_RESET_FIRST:
        active.cell_step(&d.q, s, own.r)
    else:
        active.gru_gates(&d.q, s, own.r)
        wait(own)
        s.h, s.ldh = s.rh, d.padded
        if d.r.blas:
            product(d.r_candidate, s.rh, d.padded, w.hr, d.padded, s.rows, d.padded, False, 0, 1, NULL)
        active.gru_output(&d.q, s, own.r_candidate, h_prev, ldh_prev)
    if d.project != NULL:
        wait(own)
        product(d.project, w.unprojected, d.H, h, ldo, s.rows, d.O, own.r.backwards, own.part, own.parts, NULL)
    wait(own)


cdef double step_cost(const Direction *d, Py_ssize_t rows) noexcept nogil:
    """Estimate how many nanoseconds a step takes without its input projection."""
    cdef double cost = product_cost(d.r, rows)
    if d.r_candidate != NULL:
        cost += product_cost(d.r_candidate, rows)
    return cost if d.project == NULL else cost + product_cost(d.project, rows)


# ---------------------------------------------------------------------------------------------- sequences
cdef struct Batch:
    # Inputs x [T, B, I] and outputs y [T, B, O], with strides in floats. y does not alias x. In a ragged batch, `order`
    # sorts the rows by descending length, and counts[s] rows are longer than s. A packed batch has x [N, I] and y [N,
    # O]: the rows of step t, by descending length, begin at starts[t].
    Py_ssize_t T, B
    const float *x
    Py_ssize_t x_t, x_b
    float *y
    Py_ssize_t y_t, y_b
    const Py_ssize_t *order
    const Py_ssize_t *counts
    const Py_ssize_t *lens
    const Py_ssize_t *starts    # NULL: not packed
    bint reverse
    # The values for backward: [steps, rows of the step, width], or NULL. Unless ragged, a step has saved_t floats.
    float *saved
    Py_ssize_t saved_t, width


cdef inline Py_ssize_t offset(const Batch *b, Py_ssize_t t, Py_ssize_t row, Py_ssize_t of_t,
                              Py_ssize_t of_b) noexcept nogil:
    """Return where a row's step t lies in x or y, which has the strides of_t and of_b."""
    return t * of_t + row * of_b if b.starts == NULL else (b.starts[t] + row) * of_t


cdef Py_ssize_t carve(float **part, float *base, Py_ssize_t at, Py_ssize_t size) noexcept nogil:
    """Place the next part of a workspace and return where the one after it begins. Without a base it only counts."""
    part[0] = NULL if base == NULL else base + at
    return at + (size + BLOCK - 1) // BLOCK * BLOCK


cdef bint in_one_pass(const Direction *d, const Batch *b) noexcept nogil:
    """Return whether steps project their own input, panel by panel: if there is only one step or it has many rows."""
    return (b.T == 1 or b.B >= TALL_STEP) and b.order == NULL and not d.r.blas


cdef Py_ssize_t lay_out(const Direction *d, Batch *b, Workspace *w, float *base) noexcept nogil:
    """Place the parts of the workspace one after the other from `base` on. Returns the floats that they take."""
    cdef Py_ssize_t columns = d.q.r.blocks * BLOCK, rows, at = 0
    cdef Py_ssize_t candidate_columns = d.q.r_candidate.blocks * BLOCK
    rows = max(PROJECTION_FLOATS // max(columns + candidate_columns, 1),
               min(PROJECTION_ROWS, PROJECTION_INPUTS // max(d.x.m.k, 1)))
    w.steps = max(1, min(b.T, rows // b.B))
    rows = w.steps * b.B
    if in_one_pass(d, b):
        w.steps, rows = b.T, 0
    at = carve(&w.xg, base, at, rows * columns)
    at = carve(&w.xg_candidate, base, at, rows * candidate_columns)
    at = carve(&w.packed, base, at, rows * d.x.m.k if b.order != NULL else 0)
    at = carve(&w.h, base, at, 2 * b.B * d.O if b.order != NULL else 0)
    at = carve(&w.zeros, base, at, d.O)
    at = carve(&w.c, base, at, b.B * d.padded)
    at = carve(&w.z, base, at, b.B * d.padded if d.x_candidate != NULL else 0)
    at = carve(&w.rh, base, at, b.B * d.padded if d.x_candidate != NULL else 0)
    at = carve(&w.hr, base, at, b.B * columns if d.r.blas else 0)
    return carve(&w.unprojected, base, at, b.B * d.H if d.project != NULL else 0)


cdef struct States:
    # Initial states (NULL: zeros) and last states, h [.., B, O] and c [.., B, H]. Only an LSTM has c.
    const float *h0
    const float *c0
    float *h
    float *c


cdef States advanced(States s, Py_ssize_t h, Py_ssize_t c) noexcept nogil:
    """Return the pointers to the states, moved on by so many floats of h and of c."""
    if s.h0 != NULL:
        s.h0 += h
    if s.c0 != NULL:
        s.c0 += c
    s.h += h
    if s.c != NULL:
        s.c += c
    return s


cdef struct Run:
    # One direction over a batch, for all threads that share it.
    Direction *d
    Batch *b
    Workspace *w
    const float *h0
    team *crew
    interrupt *call
    bint backwards              # the order of the panels at the first step
    Py_ssize_t chunk, steps     # the chunk, whose inputs are projected at once: its first step, how many it has
    Py_ssize_t before           # ragged: rows of all steps before the chunk
    Py_ssize_t first, last      # the steps of this phase: first <= s < last


cdef void input_part(void *argument, int part, int parts) noexcept nogil:
    """Compute xg [steps, B or counts[s], columns] = bias + x . W for the steps of a chunk.

    In ragged batches rows are in the order of the steps, otherwise in the order of time, which `reverse` runs
    backwards.
    """
    cdef Run *r = <Run *>argument
    project_input(r.d.x, r, r.w.xg, part, parts)
    if r.d.x_candidate != NULL:
        project_input(r.d.x_candidate, r, r.w.xg_candidate, part, parts)


cdef void project_input(const weights *m, Run *r, float *xg, int part, int parts) noexcept nogil:
    """Project the inputs of a chunk in as few tall products as the strides allow."""
    cdef Batch *b = r.b
    cdef Py_ssize_t n = m.m.blocks * BLOCK, I = m.m.k, steps = r.steps, s, i, rows = 0
    cdef const float *x = b.x + (b.T - r.chunk - steps if b.reverse else r.chunk) * b.x_t
    if b.order != NULL:
        for s in range(r.chunk, r.chunk + steps):
            rows += b.counts[s]
        product(m, r.w.packed, I, xg, n, rows, n, r.backwards, part, parts, r.call)
    elif b.B == 1:
        product(m, x, b.x_t, xg, n, steps, n, r.backwards, part, parts, r.call)
    elif b.x_t == b.B * b.x_b:
        product(m, x, b.x_b, xg, n, steps * b.B, n, r.backwards, part, parts, r.call)
    elif steps < b.B:
        for s in range(steps):
            product(m, x + s * b.x_t, b.x_b, xg + s * b.B * n, n, b.B, n, s & 1, part, parts, r.call)
    else:
        for i in range(b.B):
            product(m, x + i * b.x_b, b.x_t, xg + i * n, b.B * n, steps, n, i & 1, part, parts, r.call)


cdef void pack_input(Run *r) noexcept nogil:
    """Copy the inputs of a ragged chunk in the order of its steps."""
    cdef Batch *b = r.b
    cdef Py_ssize_t I = r.d.x.m.k, s, i, row, t, rows = 0
    for s in range(r.chunk, r.chunk + r.steps):
        for i in range(b.counts[s]):
            row = b.order[i]
            t = b.lens[row] - 1 - s if b.reverse else s
            memcpy(r.w.packed + rows * I, b.x + offset(b, t, row, b.x_t, b.x_b), I * sizeof(float))
            rows += 1


cdef void steps_part(void *argument, int part, int parts) noexcept nogil:
    """Do part `part` of `parts` of each step of a phase, one step after the other."""
    cdef Run *r = <Run *>argument
    cdef Direction *d = r.d
    cdef Batch *b = r.b
    cdef Workspace *w = r.w
    cdef Py_ssize_t O = d.O, s, i, at, row, t, rows = 0
    cdef Py_ssize_t columns = d.q.r.blocks * BLOCK, candidate_columns = d.q.r_candidate.blocks * BLOCK
    cdef float *y
    cdef step args
    cdef Share own
    own.part, own.parts, own.crew = part, parts, r.crew
    own.r, own.r_candidate = share_of(&d.q.r, part, parts), share_of(&d.q.r_candidate, part, parts)
    memset(&args, 0, sizeof(args))
    args.ldx, args.ldx_candidate = columns, candidate_columns
    args.c, args.z, args.rh, args.rows = w.c, w.z, w.rh, b.B
    if in_one_pass(d, b):
        args.ld_input = b.x_b
        args.w = &d.x.m
        if d.x_candidate != NULL:
            args.w_candidate = &d.x_candidate.m
    if b.order != NULL:
        for s in range(r.chunk, r.first):
            rows += b.counts[s]
    for s in range(r.first, r.last):
        if b.order == NULL:
            at = (r.chunk + r.steps - 1 - s if b.reverse else s - r.chunk) * b.B
            y = b.y + (b.T - 1 - s if b.reverse else s) * b.y_t
            args.h_out, args.ldo = y, b.y_b
            args.h = y + (b.y_t if b.reverse else -b.y_t)
            args.ldh = b.y_b
            if s == 0:
                args.h, args.ldh = w.zeros, 0
                if r.h0 != NULL:
                    args.h, args.ldh = r.h0, O
        else:
            args.rows = b.counts[s]
            at = rows
            rows += args.rows
            args.h, args.ldh = w.h + ((s + 1) & 1) * b.B * O, O
            args.h_out, args.ldo = w.h + (s & 1) * b.B * O, O
        if args.w != NULL:
            args.x = b.x + (b.T - 1 - s if b.reverse else s) * b.x_t
        args.xg = w.xg + at * columns
        args.xg_candidate = w.xg_candidate + at * candidate_columns
        if b.saved != NULL:
            args.saved = b.saved + (s * b.saved_t if b.order == NULL else (r.before + at) * b.width)
        own.r.backwards = own.r_candidate.backwards = (s & 1) ^ r.backwards
        run_step(d, &args, w, &own)
        if b.order != NULL:
            for i in range(args.rows * part // parts, args.rows * (part + 1) // parts):
                row = b.order[i]
                t = b.lens[row] - 1 - s if b.reverse else s
                memcpy(b.y + offset(b, t, row, b.y_t, b.y_b), w.h + ((s & 1) * b.B + i) * O, O * sizeof(float))


cdef void run_direction(Direction *d, Batch *b, Workspace *w, const States *states, bint backwards,
                        team *crew, int threads, interrupt *call) noexcept nogil:
    """Run one direction over the whole batch: writes y and the last output and cell state of each row.

    If the call is stopped, this returns between two phases, and what it has written means nothing.
    """
    cdef Py_ssize_t O = d.O, H = d.H, i, row, t, steps, phase
    cdef double cost = step_cost(d, b.B) + (product_cost(d.x, b.B) if in_one_pass(d, b) else 0)
    cdef Run r
    cdef watch own = watch_of(call)
    r.d, r.b, r.w, r.h0, r.crew, r.call = d, b, w, states.h0, crew, call
    r.backwards = backwards
    phase = 1 if b.T == 1 else max(1, <Py_ssize_t>((PIECE_COST if crew == NULL else LONG_PHASE) / cost))
    memset(w.zeros, 0, O * sizeof(float))
    for i in range(b.B):
        row = i if b.order == NULL else b.order[i]
        memset(w.c + i * d.padded, 0, d.padded * sizeof(float))
        if states.c0 != NULL:
            memcpy(w.c + i * d.padded, states.c0 + row * H, H * sizeof(float))
        if b.order != NULL:
            memset(w.h + (b.B + i) * O, 0, O * sizeof(float))
            if states.h0 != NULL:
                memcpy(w.h + (b.B + i) * O, states.h0 + row * O, O * sizeof(float))
    r.chunk = r.before = 0
    while r.chunk < b.T:
        r.steps = min(w.steps, b.T - r.chunk)
        if b.order != NULL:
            pack_input(&r)
        if crew != NULL and not in_one_pass(d, b):
            team_each(crew, ITEMS * threads, input_part, &r)
        elif not in_one_pass(d, b):
            input_part(&r, 0, 1)
        r.first = r.chunk
        while r.first < r.chunk + r.steps:
            r.last = min(r.first + phase, r.chunk + r.steps)
            if crew == NULL:
                steps_part(&r, 0, 1)
            else:
                team_split(crew, steps_part, &r)
            if spend(&own, <int64_t>((r.last - r.first) * cost)):
                return
            r.first = r.last
        if b.order != NULL:
            for i in range(r.chunk, r.chunk + r.steps):
                r.before += b.counts[i]
        r.chunk += r.steps
    for i in range(b.B):
        row = i if b.order == NULL else b.order[i]
        steps = b.T if b.order == NULL else b.lens[row]
        if steps == 0:
            memset(states.h + row * O, 0, O * sizeof(float))
            memset(w.c + i * d.padded, 0, d.padded * sizeof(float))
        elif b.order == NULL:
            memcpy(states.h + row * O, b.y + (0 if b.reverse else b.T - 1) * b.y_t + row * b.y_b, O * sizeof(float))
        else:
            memcpy(states.h + row * O, w.h + (((steps - 1) & 1) * b.B + i) * O, O * sizeof(float))
        if states.c != NULL:
            memcpy(states.c + row * H, w.c + i * d.padded, H * sizeof(float))
        for t in range(steps, b.T if b.starts == NULL else 0):
            memset(b.y + t * b.y_t + row * b.y_b, 0, O * sizeof(float))


# ---------------------------------------------------------------------------------------------- layers
cdef struct Layer:
    # All directions over a batch. Directions are independent of each other, and so are rows. Several threads either
    # take items, which are the `parts` into which each direction's batch is divided, or share every step as a crew.
    Direction *directions[2]
    bint reverse[2]
    Py_ssize_t D
    Batch b
    float *y
    Py_ssize_t y_d              # floats between the directions of y
    float *saved[2]
    States states
    bint backwards              # the order of the panels at the first step
    int parts
    float *memory
    Py_ssize_t workspace        # floats of one item's workspace
    team *crew                  # the threads that share the steps, or NULL
    int threads
    bint brief                  # an argument of team_open
    interrupt *call


cdef void run_item(void *argument, int item, int items) noexcept nogil:
    """Run one direction over a part of the batch."""
    cdef Layer *layer = <Layer *>argument
    cdef Py_ssize_t i = item // layer.parts, part = item % layer.parts, B = layer.b.B, first = B * part // layer.parts
    cdef Direction *d = layer.directions[i]
    cdef States states = advanced(layer.states, (i * B + first) * d.O, (i * B + first) * d.H)
    cdef Batch b = layer.b
    cdef Workspace w
    b.B = B * (part + 1) // layer.parts - first
    b.x += first * b.x_b
    b.y = layer.y + i * layer.y_d + first * b.y_b
    b.reverse = layer.reverse[i]
    b.saved = NULL if layer.saved[i] == NULL else layer.saved[i] + first * b.width
    lay_out(d, &b, &w, layer.memory + item * layer.workspace)
    run_direction(d, &b, &w, &states, layer.backwards, layer.crew, layer.threads, layer.call)


cdef int share_out(Layer *layer, int threads) except -1:
    """Set parts, workspace and brief; return how many of the threads are worth using."""
    cdef Direction *d = layer.directions[0]
    cdef Batch b = layer.b
    cdef Workspace w
    cdef double of_step, cost
    layer.parts = 1
    layer.brief = False
    if d.r.blas:                # BLAS has threads of its own
        threads = 1
    if threads > 1:
        of_step = step_cost(d, b.B)
        cost = layer.D * (b.T * of_step + product_cost(d.x, b.T * b.B))
        layer.brief = cost < BRIEF_COST
        if cost < SHARED_COST and not forced:
            threads = 1
        threads = useful_threads(threads)
        if b.order == NULL and d.r.m.k * d.r.m.blocks * BLOCK <= SHARED_FLOATS:
            layer.parts = max(1, min(threads // layer.D, b.B // SHARED_ROWS))
        if layer.D * layer.parts > 1:
            threads = min(threads, layer.D * layer.parts)
        elif not forced:
            threads = min(threads, max(1, <int>(of_step / PHASE_COST)))
    b.B = (b.B + layer.parts - 1) // layer.parts
    layer.workspace = lay_out(d, &b, &w, NULL)
    if layer.parts > 1:
        b.B = layer.b.B // layer.parts
        layer.workspace = max(layer.workspace, lay_out(d, &b, &w, NULL))
    return threads


cdef int cells_of(Layer *layer, tuple cells, tuple reverse) except -1:
    """Set the directions of a layer, which must not outlive the cells."""
    cdef Cell q
    cdef Py_ssize_t i
    layer.D = len(cells)
    for i in range(layer.D):
        q = cells[i]
        layer.saved[i] = NULL
        layer.directions[i], layer.reverse[i] = &q.d, reverse[i]
    return 0


cdef void run_items(Layer *layer) noexcept nogil:
    """Run a whole layer. The caller has set the floating-point mode."""
    cdef team crew
    cdef int items = layer.D * layer.parts, i
    team_open(&crew, layer.threads, layer.brief)
    layer.crew = &crew if layer.threads > 1 and items == 1 else NULL
    if layer.threads > 1 and items > 1:
        team_each(&crew, items, run_item, layer)
    else:
        for i in range(items):
            run_item(layer, i, items)
    team_close(&crew)


cdef int run_layer(Layer *layer, Cell q, int threads) except -1:
    """Run a layer on up to so many threads. `layer` has its cells, the first of which is q, and its arrays."""
    cdef unsigned mode
    cdef interrupt call
    layer.backwards = turn(&q.turns) & 1
    layer.threads = share_out(layer, threads)
    cdef block *memory = workspaces.borrow(layer.D * layer.parts * layer.workspace * sizeof(float))
    begin(&call, 0)
    layer.memory, layer.call = <float *>memory_of(memory), &call
    with nogil:
        mode = active.flush_denormals()
        run_items(layer)
        active.restore_mode(mode)
    workspaces.give_back(memory)
    return finish(&call)


cdef struct recurrent_command:
    # The command of a recurrent layer. h0, c0, c and lens have buffer -1 if absent. lens is int32 [B]; a length that is
    # out of range is reported in status. `sorted` has room for 2 B + T words.
    command head
    const Layer *layer
    location x, y, h0, c0, h, c, memory, lens, status, sorted


cdef float *placed(const context *x, location p) noexcept nogil:
    """Return the address of an array, or NULL if it is absent."""
    return NULL if p.buffer < 0 else <float *>address_of(x, p)


cdef void sort_rows(Batch *b, const int32_t *lens, int64_t *status, Py_ssize_t *memory) noexcept nogil:
    """Set a batch's lengths, its rows by descending length, and how many rows are longer than each step.

    A batch whose rows all have T steps is left as it is. A length out of range counts as 0 and is reported in status.
    """
    cdef Py_ssize_t *checked = memory
    cdef Py_ssize_t *order = memory + b.B
    cdef Py_ssize_t *counts = order + b.B
    cdef Py_ssize_t i, at, length
    cdef bint ragged = False
    status[0] = 0
    memset(counts, 0, b.T * sizeof(Py_ssize_t))
    for i in range(b.B):
        length = lens[i]
        if length < 0 or length > b.T:
            if not status[0]:
                status[0], status[1] = 1, length
            length = 0
        checked[i] = length
        ragged = ragged or length != b.T
        if length:
            counts[length - 1] += 1
    if not ragged:
        return
    for i in range(b.T - 2, -1, -1):            # from rows of exactly this length to rows of at least this length
        counts[i] += counts[i + 1]
    at = 0
    for length in range(b.T, -1, -1):
        if at < b.B and (length == b.T or length == 0 or counts[length - 1] > at):
            for i in range(b.B):
                if checked[i] == length:
                    order[at] = i
                    at += 1
    b.lens, b.order, b.counts = checked, order, counts


cdef void run_recurrent(const command *head, const context *x) noexcept nogil:
    """Run a recurrent_command."""
    cdef const recurrent_command *m = <const recurrent_command *>head
    cdef Layer layer = m.layer[0]
    if m.lens.buffer >= 0:
        layer.b.order = NULL
        sort_rows(&layer.b, <const int32_t *>address_of(x, m.lens), <int64_t *>address_of(x, m.status),
                  <Py_ssize_t *>address_of(x, m.sorted))
    layer.threads = min(layer.threads, x.threads)
    layer.b.x, layer.y, layer.memory = placed(x, m.x), placed(x, m.y), placed(x, m.memory)
    layer.states.h0, layer.states.c0 = placed(x, m.h0), placed(x, m.c0)
    layer.states.h, layer.states.c = placed(x, m.h), placed(x, m.c)
    layer.backwards = x.backwards
    layer.call = x.watch.call
    run_items(&layer)
    x.watch.left -= <int64_t>(layer.D * layer.b.T * step_cost(layer.directions[0], layer.b.B))


cdef class Prepared:
    """A layer for batches of one shape, for the recurrent command of native programs.

    `strides` are those of T and B in x, and of T, B and the directions in y, in floats. If `ragged`, runs take lengths.
    `workspace` is the number of floats that a run needs, `command` is the function that runs the command.
    """
    command = <size_t>&run_recurrent
    cdef Layer layer
    cdef readonly tuple cells, strides
    cdef readonly Py_ssize_t workspace, T, B

    def __init__(self, tuple cells, tuple reverse, T, B, strides, int threads, bint ragged=False):
        cdef Workspace w
        cdef Py_ssize_t size
        self.cells, self.strides, self.T, self.B = cells, tuple(strides), T, B
        cells_of(&self.layer, cells, reverse)
        self.layer.b.T, self.layer.b.B = T, B
        self.layer.b.order = self.layer.b.counts = self.layer.b.lens = self.layer.b.starts = NULL
        self.layer.b.x_t, self.layer.b.x_b, self.layer.b.y_t, self.layer.b.y_b, self.layer.y_d = strides
        if ragged:
            self.layer.b.order = &self.workspace        # any pointer: only whether it is NULL matters
        self.layer.threads = share_out(&self.layer, threads)
        if ragged:
            self.layer.b.order = NULL                   # as in runs where all rows have T steps
            size = lay_out(self.layer.directions[0], &self.layer.b, &w, NULL)
            self.layer.workspace = max(self.layer.workspace, size)
        self.workspace = self.layer.D * self.layer.parts * self.layer.workspace

    @property
    def address(self):
        """The address of the layer for native programs, which must not outlive this object."""
        return <size_t>&self.layer


cdef object new_array(int ndim, cnp.npy_intp a, cnp.npy_intp b, cnp.npy_intp c):
    """Return a new float32 array of up to three axes, uninitialised."""
    cdef cnp.npy_intp[3] shape = [a, b, c]
    return cnp.PyArray_EMPTY(ndim, shape, cnp.NPY_FLOAT32, 0)


cdef object state_array(a, Py_ssize_t D, Py_ssize_t B, Py_ssize_t size, name):
    """Return an initial state as contiguous float32 [D, B, size], or None."""
    if a is None:
        return None
    if not is_float32(a) or not cnp.PyArray_IS_C_CONTIGUOUS(a):
        a = np.array(a, dtype=np.float32, order="C")
    if not is_state(a, D, B, size):
        raise ValueError(f"{name} has shape {a.shape}, expected {(D, B, size)}")
    return a


cdef inline float *address(a) noexcept:
    """Return the address of an array's data, NULL for None."""
    return NULL if a is None else <float *>cnp.PyArray_DATA(a)


cdef tuple sort_lengths(sequence_lens, Py_ssize_t T, Py_ssize_t B):
    """Return (lengths, rows by descending length, how many are longer than each step); Nones if all have T steps."""
    if sequence_lens is None or not T or not np.any(np.asarray(sequence_lens) != T):
        return None, None, None
    lens = np.ascontiguousarray(sequence_lens, dtype=np.intp)
    if lens.shape != (B,) or np.min(lens) < 0 or np.max(lens) > T:
        raise ValueError(f"sequence_lens must be {B} lengths from 0 to {T}")
    order = np.argsort(-lens, kind="stable")
    return lens, order, np.searchsorted(-lens[order], -np.arange(T))


cdef tuple sort_packed(batch_sizes, Py_ssize_t N):
    """Return the results of sort_lengths and the first row of each step for a packed sequence of N rows in all."""
    counts = np.array(batch_sizes, dtype=np.intp)
    if counts.ndim != 1 or not counts.size or counts[-1] < 1 or np.any(np.diff(counts) > 0) or np.sum(counts) != N:
        raise ValueError(f"batch_sizes must fall from the number of rows to at least 1, and sum up to {N}")
    order = np.arange(counts[0])
    return np.searchsorted(-counts, -order), order, counts, np.cumsum(counts) - counts


def recurrent(tuple cells, tuple reverse, x, y, initial_h=None, initial_c=None, sequence_lens=None, int threads=1,
              saved=None, batch_sizes=None):
    """Run one layer, in one or both directions, over a batch of sequences.

    The caller checks shapes. Up to `threads` threads share the work if it is large enough, which does not change the
    bits; BLAS has threads of its own instead.

    Args:
        cells: One cell for each of the D directions.
        reverse: Whether each direction runs backwards.
        x: float32 [T, B, I] with any strides of T and B.
        y: float32 [T, D, B, O] with any strides except along the last axis; it must not overlap the others. It is
            written as a whole, with zeros past the end of a row.
        initial_h: float32 [D, B, O]; None for zeros.
        initial_c: float32 [D, B, H]; None for zeros.
        sequence_lens: [B], from 0 to T; None if all are T.
        threads: The most threads to use.
        saved: None or, for each direction, float32 [rows of all steps, Cell.saved_size], written for backward.
        batch_sizes: If it is not None, x [N, 1, I] and y [N, D, 1, O] are packed: they have the batch_sizes[t] rows
            that are longer than t for each step t, by descending length. States have the rows in the same order.

    Returns:
        Y_h [D, B, O] and Y_c [D, B, H] (None except for LSTM): the state of each row after its last step, zeros for
        rows of length 0.

    Raises:
        ValueError: An array or the cells do not fit.
    """
    cdef Py_ssize_t D = len(cells)
    cdef Cell q = cells[0], other
    cdef Layer layer
    cdef Batch *b = &layer.b
    cdef Py_ssize_t O = q.output_size, H = q.hidden_size, i
    x = readable(x)
    if cnp.PyArray_NDIM(x) != 3 or not is_float32(y) or cnp.PyArray_NDIM(y) != 4 or not cnp.PyArray_ISWRITEABLE(y):
        raise ValueError(f"x {np.shape(x)} and y {np.shape(y)} must be float32 of 3 and 4 axes, y writeable")
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(y)
    b.T, b.B = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
    if (cnp.PyArray_DIM(x, 2) != q.input_size or shape[0] != b.T or shape[1] != D or shape[2] != b.B or shape[3] != O
            or len(reverse) != D or D > 2 or (b.T * b.B and not contiguous_rows(y))):
        raise ValueError(f"x {x.shape} and y {y.shape} do not fit {D} cells of {q.input_size} inputs and {O} outputs")
    for other in cells:
        if (other.d.q.kind != q.d.q.kind or other.input_size != q.input_size or other.hidden_size != H
                or other.output_size != O or other.d.r.blas != q.d.r.blas
                or (other.d.project == NULL) != (q.d.project == NULL)):
            raise ValueError("the cells of both directions must have the same kind, sizes and matmul")
    cdef Py_ssize_t[::1] lens, order, counts, starts
    lens = order = counts = starts = None
    if batch_sizes is not None:
        lens, order, counts, starts = sort_packed(batch_sizes, b.T)
        b.T, b.B = counts.shape[0], counts[0]
    h0 = state_array(initial_h, D, b.B, O, "initial_h")
    c0 = state_array(initial_c, D, b.B, H, "initial_c")
    y_h = new_array(3, D, b.B, O)
    y_c = new_array(3, D, b.B, H) if q.d.q.kind == CELL_LSTM else None
    if b.B == 0 or H == 0 or O == 0:
        return y_h, y_c
    b.x = <const float *>cnp.PyArray_DATA(x)
    b.x_t, b.x_b = cnp.PyArray_STRIDE(x, 0) // 4, cnp.PyArray_STRIDE(x, 1) // 4
    b.y_t, b.y_b = cnp.PyArray_STRIDE(y, 0) // 4, cnp.PyArray_STRIDE(y, 2) // 4 if b.B > 1 else O
    b.order = b.counts = b.lens = b.starts = NULL
    if batch_sizes is None:
        lens, order, counts = sort_lengths(sequence_lens, b.T, b.B)
    elif counts[b.T - 1] < b.B:
        b.starts = &starts[0]
    else:                       # all rows have T steps
        lens = None
        b.x_t, b.x_b, b.y_t, b.y_b = b.B * b.x_t, b.x_t, b.B * b.y_t, b.y_t
    if lens is not None:
        b.lens, b.order, b.counts = &lens[0], &order[0], &counts[0]
    layer.y, layer.y_d = <float *>cnp.PyArray_DATA(y), cnp.PyArray_STRIDE(y, 1) // 4
    layer.states = States(address(h0), address(c0), address(y_h), address(y_c))
    cells_of(&layer, cells, reverse)
    if saved is not None:
        b.width = q.saved_size
        b.saved_t = b.B * b.width
        rows = b.T * b.B if lens is None else np.sum(lens)
        for i in range(D):
            if not q.differentiable or saved[i].shape != (rows, b.width) or not is_float32(saved[i]):
                raise ValueError("saved does not fit")
            layer.saved[i] = address(saved[i])
    run_layer(&layer, q, threads)
    return y_h, y_c


def forward(tuple stack, tuple reverse, x, states, bint batch_first, int threads=1):
    """Run a stack of layers on whole sequences in one call. Returns y and the tuple of last states.

    `stack` has a tuple of cells for each layer; their directions are concatenated in y [T, B, D * O]. x is [T, B, I];
    with `batch_first`, x and y have B before T. `states` are h0 [layers * D, B, O] and, for LSTM, c0 [layers * D, B,
    H], or None for zeros. Returns None unless all arrays are float32 of fitting shapes and the states are contiguous;
    the caller then converts them or reports what is wrong.
    """
    cdef Py_ssize_t D = len(reverse), layers = len(stack), i
    cdef Py_ssize_t time_axis = 1 if batch_first else 0
    cdef Cell q = stack[0][0]
    cdef Layer layer
    cdef Batch *b = &layer.b
    cdef Py_ssize_t O = q.output_size, H = q.hidden_size
    h0, c0 = states[0], states[1] if q.d.q.kind == CELL_LSTM else None
    if not is_float32(x) or cnp.PyArray_NDIM(x) != 3 or cnp.PyArray_DIM(x, 2) != q.input_size or not contiguous_rows(x):
        return None
    b.T, b.B = cnp.PyArray_DIM(x, time_axis), cnp.PyArray_DIM(x, 1 - time_axis)
    b.order = b.counts = b.lens = b.starts = NULL
    if b.T == 0 or b.B == 0 or not is_state(h0, layers * D, b.B, O) or not is_state(c0, layers * D, b.B, H):
        return None
    h = new_array(3, layers * D, b.B, O)
    c = new_array(3, layers * D, b.B, H) if q.d.q.kind == CELL_LSTM else None
    layer.states = States(address(h0), address(c0), address(h), address(c))
    layer.y_d = O
    y = x
    for i in range(layers):
        x = y
        y = new_array(3, b.B, b.T, D * O) if batch_first else new_array(3, b.T, b.B, D * O)
        layer.y, b.x = address(y), address(x)
        b.x_t, b.x_b = cnp.PyArray_STRIDE(x, time_axis) // 4, cnp.PyArray_STRIDE(x, 1 - time_axis) // 4
        b.y_t, b.y_b = cnp.PyArray_STRIDE(y, time_axis) // 4, cnp.PyArray_STRIDE(y, 1 - time_axis) // 4
        cells_of(&layer, stack[i], reverse)
        run_layer(&layer, stack[i][0], threads)
        layer.states = advanced(layer.states, D * b.B * O, D * b.B * H)
    return y, (h,) if c is None else (h, c)


cdef inline bint is_state(a, Py_ssize_t n, Py_ssize_t B, Py_ssize_t size) noexcept:
    """Return whether `a` is a contiguous float32 array [n, B, size] or None."""
    return a is None or (is_float32(a) and cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_NDIM(a) == 3
                         and cnp.PyArray_DIM(a, 0) == n and cnp.PyArray_DIM(a, 1) == B
                         and cnp.PyArray_DIM(a, 2) == size)
