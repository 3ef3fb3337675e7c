"""The engine: the cells of one direction with their packed weights, and the time loop. float32; the GIL ends here.

Shapes are checked by the callers (rnnfast.nn, rnnfast.onnx); this module checks again only what would crash.
A workspace depends on the batch and the layer, not on the length of the sequences; later calls use it again.
"""
from libc.math cimport INFINITY
from libc.string cimport memcpy, memset

cimport numpy as cnp

import numpy as np

from rnnfast._kernels import ACTIVATIONS

from rnnfast._kernels cimport *

cnp.import_array()

cdef enum:
    SPARE_BUFFERS = 4           # workspaces kept for later calls, each of at most SPARE_FLOATS
    SPARE_FLOATS = 1 << 20
    PROJECTION_FLOATS = 65536   # input projections that are held at once: they stay in the second-level cache
    PROJECTION_ROWS = 128       # and at least so many rows for one pass over W: 0.95 of the time at H768 T500 B1


# ---------------------------------------------------------------------------------------------- memory
cdef list spare = []


cdef Buffer borrow(Py_ssize_t size):
    """A workspace of at least `size` floats: one that an earlier call gave back, if it is large enough."""
    cdef Buffer memory
    if spare:
        memory = spare.pop()
        if memory.size >= size:
            return memory
    return Buffer(size)


cdef void give_back(Buffer memory):
    if memory.size <= SPARE_FLOATS and len(spare) < SPARE_BUFFERS:
        spare.append(memory)


# ---------------------------------------------------------------------------------------------- cells
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


cdef class Cell:
    """One direction of one recurrent layer, its weights packed: immutable, shared by threads.

    kind: "RNN", "LSTM" or "GRU". W [G*H, I], R [G*H, H], B [2*G*H] or None, P [3*H] or None, in ONNX's gate order
    (LSTM i o f c, GRU z r h). activations: (name, alpha, beta) for f, g, h as the kind has them. projection [P, H]
    makes the output P wide (then R is [G*H, P]; LSTM only).
    """
    cdef cell q
    cdef Matrix x, x_candidate, r, r_candidate, project
    cdef Buffer extra
    cdef readonly str kind
    cdef readonly Py_ssize_t input_size, hidden_size, output_size
    cdef Py_ssize_t padded
    cdef unsigned turns         # calls, for the order of the panels only: no result depends on it

    def __init__(self, kind, W, R, B=None, P=None, *, activations, clip=None, input_forget=False,
                 linear_before_reset=False, projection=None, matmul=None):
        cdef Py_ssize_t i
        gates = GATES[kind]
        W, R = readable(W), readable(R)
        H = W.shape[0] // gates
        self.kind, self.input_size, self.hidden_size = kind, W.shape[1], H
        self.output_size = R.shape[1]
        self.padded = blocks_of(H) * BLOCK
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

        if reset_first:
            self.x = Matrix(W[:2 * H].T, bias[:2 * H], matmul=matmul, gates=2)
            self.x_candidate = Matrix(W[2 * H:].T, bias[2 * H:], matmul=matmul)
            self.r = Matrix(R[:2 * H].T, matmul=matmul, gates=2)
            self.r_candidate = Matrix(R[2 * H:].T, matmul=matmul)
            self.q.r_candidate = self.r_candidate.m
        else:
            self.x = Matrix(W.T, bias, matmul=matmul, gates=gates)
            self.r = Matrix(R.T, matmul=matmul, gates=gates)
        self.q.r = self.r.m
        self.project = None if projection is None else Matrix(readable(projection).T, matmul=matmul)
        self.q.kind = (CELL_RNN if kind == "RNN" else CELL_LSTM if kind == "LSTM" else
                       CELL_GRU_RESET_FIRST if reset_first else CELL_GRU)
        self.q.hidden_size = H
        self.q.clip = INFINITY if clip is None else clip
        self.q.input_forget = input_forget
        for i, (name, alpha, beta) in enumerate(activations):
            self.q.act[i].kind, self.q.act[i].alpha, self.q.act[i].beta = ACTIVATIONS[name], alpha, beta
        names = tuple(name for name, _, _ in activations)
        self.q.fused = (clip is None and P is None and not input_forget and
                        names in (("Tanh",), ("Relu",), ("Sigmoid", "Tanh"), ("Sigmoid", "Tanh", "Tanh")))

        self.extra = Buffer(4 * self.padded)
        extra = np.zeros((4, self.padded), np.float32)
        extra[0, :H] = candidate_bias
        if P is not None:
            extra[1:, :H] = np.asarray(P, np.float32).reshape(3, H)
        cdef const float[:, ::1] values = extra
        if self.padded:
            memcpy(self.extra.p, &values[0, 0], 4 * self.padded * sizeof(float))
        self.q.candidate_bias = self.extra.p
        self.q.peephole = NULL if P is None else self.extra.p + self.padded

    @property
    def nbytes(self):
        """Bytes that the packed weights take."""
        parts = (self.x, self.x_candidate, self.r, self.r_candidate, self.project)
        return sum(m.nbytes for m in parts if m is not None) + 4 * self.extra.size

    cdef void run(self, step *s, const float *h_prev, Py_ssize_t ldh, float *h, Py_ssize_t ldo, float *hr,
                  float *unprojected, bint backwards) noexcept nogil:
        """One step: h[rows] from h_prev[rows]; s holds the input projections or inputs, c and scratch."""
        s.h, s.ldh = h_prev, ldh
        s.h_out, s.ldo = h, ldo
        if self.project is not None:
            s.h_out, s.ldo = unprojected, self.hidden_size
        s.hr = NULL
        if self.r.blas:
            self.r.product(s.h, s.ldh, hr, self.q.r.blocks * BLOCK, s.rows, self.q.r.blocks * BLOCK, False)
            s.hr = hr
        s.part = all_panels(&self.q.r, backwards)
        if self.q.kind != CELL_GRU_RESET_FIRST:
            active.cell_step(&self.q, s)
            if self.project is not None:
                self.project.product(unprojected, self.hidden_size, h, ldo, s.rows, self.output_size, False)
            return
        active.gru_gates(&self.q, s)
        s.h, s.ldh = s.rh, self.padded
        if self.r.blas:
            self.r_candidate.product(s.rh, self.padded, hr, self.padded, s.rows, self.padded, False)
        s.part = all_panels(&self.q.r_candidate, backwards)
        active.gru_output(&self.q, s, h_prev, ldh)


# ---------------------------------------------------------------------------------------------- sequences
cdef struct Batch:
    # x [T, B, I] and y [T, B, O] by strides in floats; ragged: `order` sorts the rows by falling length, `counts[s]`
    # rows are longer than s
    Py_ssize_t T, B
    const float *x
    Py_ssize_t x_t, x_b
    float *y
    Py_ssize_t y_t, y_b
    const Py_ssize_t *order
    const Py_ssize_t *counts
    const Py_ssize_t *lens
    bint reverse


cdef struct Workspace:
    float *xg
    float *xg_candidate
    float *packed               # ragged: the rows of x of a few steps
    float *h                    # ragged: two outputs [B, O], used in turn
    float *zeros                # [O]
    float *c
    float *z
    float *rh
    float *hr
    float *unprojected
    Py_ssize_t steps            # steps whose input projections are held at once


cdef Py_ssize_t place(float **part, float *base, Py_ssize_t at, Py_ssize_t size) noexcept nogil:
    """The next part of a workspace; returns where the one behind it begins. Without a base it only counts."""
    part[0] = NULL if base == NULL else base + at
    return at + (size + BLOCK - 1) // BLOCK * BLOCK


cdef Py_ssize_t lay_out(Cell q, Batch *b, Workspace *w, float *base) noexcept nogil:
    """Places the parts of the workspace behind each other from `base`; returns the floats that they take."""
    cdef Py_ssize_t columns = q.q.r.blocks * BLOCK, rows, at = 0
    cdef Py_ssize_t candidate_columns = q.q.r_candidate.blocks * BLOCK if q.x_candidate is not None else 0
    rows = max(PROJECTION_FLOATS // max(columns + candidate_columns, 1), PROJECTION_ROWS)
    w.steps = max(1, min(b.T, rows // b.B))
    rows = w.steps * b.B
    at = place(&w.xg, base, at, rows * columns)
    at = place(&w.xg_candidate, base, at, rows * candidate_columns)
    at = place(&w.packed, base, at, rows * q.input_size if b.order != NULL else 0)
    at = place(&w.h, base, at, 2 * b.B * q.output_size if b.order != NULL else 0)
    at = place(&w.zeros, base, at, q.output_size)
    at = place(&w.c, base, at, b.B * q.padded)
    at = place(&w.z, base, at, b.B * q.padded if q.x_candidate is not None else 0)
    at = place(&w.rh, base, at, b.B * q.padded if q.x_candidate is not None else 0)
    at = place(&w.hr, base, at, b.B * columns if q.r.blas else 0)
    return place(&w.unprojected, base, at, b.B * q.hidden_size if q.project is not None else 0)


cdef void project_input(Matrix m, Batch *b, float *packed, Py_ssize_t I, Py_ssize_t first, Py_ssize_t steps,
                        float *xg, bint backwards) noexcept nogil:
    """xg [steps, B or counts[s], columns] = bias + x . W for steps from `first`, as few tall products as strides allow.

    Ragged batches: rows in the order of the steps. Else rows in the order of time, which `reverse` runs backwards.
    """
    cdef Py_ssize_t n = m.m.blocks * BLOCK, s, i, row, t, rows = 0
    cdef const float *x
    if b.order != NULL:
        for s in range(first, first + steps):
            for i in range(b.counts[s]):
                row = b.order[i]
                t = b.lens[row] - 1 - s if b.reverse else s
                memcpy(packed + rows * I, b.x + t * b.x_t + row * b.x_b, I * sizeof(float))
                rows += 1
        m.product(packed, I, xg, n, rows, n, backwards)
        return
    t = b.T - first - steps if b.reverse else first
    x = b.x + t * b.x_t
    if b.B == 1:
        m.product(x, b.x_t, xg, n, steps, n, backwards)
    elif b.x_t == b.B * b.x_b:
        m.product(x, b.x_b, xg, n, steps * b.B, n, backwards)
    elif steps < b.B:
        for s in range(steps):
            m.product(x + s * b.x_t, b.x_b, xg + s * b.B * n, n, b.B, n, s & 1)
    else:
        for i in range(b.B):
            m.product(x + i * b.x_b, b.x_t, xg + i * n, b.B * n, steps, n, i & 1)


cdef void run_direction(Cell q, Batch *b, Workspace *w, const float *h0, const float *c0, float *y_h,
                        float *y_c) noexcept nogil:
    """One direction over the whole batch: y, and the last output and cell state of each row."""
    cdef Py_ssize_t O = q.output_size, H = q.hidden_size, first, steps, s, i, row, t, at, rows
    cdef Py_ssize_t columns = q.q.r.blocks * BLOCK, candidate_columns = 0
    cdef const float *h = h0 if h0 != NULL else w.zeros
    cdef Py_ssize_t ldh = O if h0 != NULL else 0, ldo
    cdef float *h_new
    cdef bint backwards = q.turns & 1
    cdef step args
    q.turns += 1
    memset(&args, 0, sizeof(args))
    args.ldx = columns
    args.c, args.z, args.rh = w.c, w.z, w.rh
    if q.x_candidate is not None:
        candidate_columns = q.x_candidate.m.blocks * BLOCK
        args.ldx_candidate = candidate_columns
    for i in range(b.B):
        row = i if b.order == NULL else b.order[i]
        memset(w.c + i * q.padded, 0, q.padded * sizeof(float))
        if c0 != NULL:
            memcpy(w.c + i * q.padded, c0 + row * H, H * sizeof(float))
        if b.order != NULL:
            memset(w.h + (b.B + i) * O, 0, O * sizeof(float))
            if h0 != NULL:
                memcpy(w.h + (b.B + i) * O, h0 + row * O, O * sizeof(float))
    if b.T == 1 and b.order == NULL and not q.r.blas:
        args.x, args.ld_input = b.x, b.x_b
        args.w = &q.x.m
        args.w_candidate = NULL if q.x_candidate is None else &q.x_candidate.m
    first = 0
    while first < b.T:
        steps = min(w.steps, b.T - first)
        if args.x == NULL:
            project_input(q.x, b, w.packed, q.input_size, first, steps, w.xg, backwards)
            if q.x_candidate is not None:
                project_input(q.x_candidate, b, w.packed, q.input_size, first, steps, w.xg_candidate, backwards)
        rows = 0
        for s in range(first, first + steps):
            if b.order != NULL:
                args.rows = b.counts[s]
                at = rows
                rows += args.rows
                h, ldh = w.h + ((s + 1) & 1) * b.B * O, O
                h_new, ldo = w.h + (s & 1) * b.B * O, O
            else:
                args.rows = b.B
                at = (first + steps - 1 - s if b.reverse else s - first) * b.B
                h_new, ldo = b.y + (b.T - 1 - s if b.reverse else s) * b.y_t, b.y_b
            args.xg = w.xg + at * columns
            args.xg_candidate = w.xg_candidate + at * candidate_columns
            q.run(&args, h, ldh, h_new, ldo, w.hr, w.unprojected, (s & 1) ^ backwards)
            if b.order == NULL:
                h, ldh = h_new, ldo
                continue
            for i in range(args.rows):
                row = b.order[i]
                t = b.lens[row] - 1 - s if b.reverse else s
                memcpy(b.y + t * b.y_t + row * b.y_b, h_new + i * O, O * sizeof(float))
        first += steps
    for i in range(b.B):
        row = i if b.order == NULL else b.order[i]
        steps = b.T if b.order == NULL else b.lens[row]
        if steps == 0:
            memset(y_h + row * O, 0, O * sizeof(float))
            memset(w.c + i * q.padded, 0, q.padded * sizeof(float))
        elif b.order == NULL:
            memcpy(y_h + row * O, b.y + (0 if b.reverse else b.T - 1) * b.y_t + row * b.y_b, O * sizeof(float))
        else:
            memcpy(y_h + row * O, w.h + (((steps - 1) & 1) * b.B + i) * O, O * sizeof(float))
        if y_c != NULL:
            memcpy(y_c + row * H, w.c + i * q.padded, H * sizeof(float))
        for t in range(steps, b.T):
            memset(b.y + t * b.y_t + row * b.y_b, 0, O * sizeof(float))


cdef object new_array(int ndim, cnp.npy_intp a, cnp.npy_intp b, cnp.npy_intp c):
    cdef cnp.npy_intp[3] shape = [a, b, c]
    return cnp.PyArray_EMPTY(ndim, shape, cnp.NPY_FLOAT32, 0)


cdef object state_array(a, Py_ssize_t D, Py_ssize_t B, Py_ssize_t size, name):
    """An initial state as contiguous float32 [D, B, size], or None."""
    if a is None:
        return None
    if not is_float32(a) or not cnp.PyArray_IS_C_CONTIGUOUS(a):
        a = np.array(a, dtype=np.float32, order="C")
    if not is_state(a, D, B, size):
        raise ValueError(f"{name} has shape {a.shape}, expected {(D, B, size)}")
    return a


cdef inline float *address(a) noexcept:
    return NULL if a is None else <float *>cnp.PyArray_DATA(a)


def recurrent(tuple cells, tuple reverse, x, y, initial_h=None, initial_c=None, sequence_lens=None, int threads=1):
    """Runs one layer, one or both directions, over a batch of sequences.

    cells, reverse: D cells and whether each runs backwards. x [T, B, I] float32 with any strides of T and B.
    y: float32 [T, D, B, O], written whole, zeros past a row's end; any strides but along the last axis.
    initial_h [D, B, O], initial_c [D, B, H]: float32, zeros if None. sequence_lens [B], 0 to T, or None for T.
    Returns Y_h [D, B, O] and Y_c [D, B, H] (None but for LSTM): each row's state after its last step, zeros for
    rows of length 0. Shapes are the caller's to check.
    """
    cdef Py_ssize_t D = len(cells)
    cdef Cell q = cells[0], other
    cdef Batch b
    cdef Py_ssize_t O = q.output_size, H = q.hidden_size
    cdef bint has_c = q.q.kind == CELL_LSTM
    x = readable(x)
    if cnp.PyArray_NDIM(x) != 3 or not is_float32(y) or cnp.PyArray_NDIM(y) != 4 or not cnp.PyArray_ISWRITEABLE(y):
        raise ValueError(f"x {np.shape(x)} and y {np.shape(y)} must be float32 of 3 and 4 axes, y writeable")
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(y)
    b.T, b.B = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
    if (cnp.PyArray_DIM(x, 2) != q.input_size or shape[0] != b.T or shape[1] != D or shape[2] != b.B or shape[3] != O
            or len(reverse) != D or (b.T * b.B and not contiguous_rows(y))):
        raise ValueError(f"x {x.shape} and y {y.shape} do not fit {D} cells of {q.input_size} inputs and {O} outputs")
    for other in cells:
        if (other.q.kind != q.q.kind or other.input_size != q.input_size or other.hidden_size != H
                or other.output_size != O):
            raise ValueError("the cells of both directions must have the same kind and sizes")
    h0 = state_array(initial_h, D, b.B, O, "initial_h")
    c0 = state_array(initial_c, D, b.B, H, "initial_c")
    y_h = new_array(3, D, b.B, O)
    y_c = new_array(3, D, b.B, H) if has_c else None
    if b.B == 0 or H == 0 or O == 0:
        return y_h, y_c
    b.x = <const float *>cnp.PyArray_DATA(x)
    b.x_t, b.x_b = cnp.PyArray_STRIDE(x, 0) // 4, cnp.PyArray_STRIDE(x, 1) // 4
    b.y_t, b.y_b = cnp.PyArray_STRIDE(y, 0) // 4, cnp.PyArray_STRIDE(y, 2) // 4 if b.B > 1 else O
    b.order = b.counts = b.lens = NULL
    cdef Py_ssize_t[::1] lens, order, counts
    if sequence_lens is not None and b.T and np.any(np.asarray(sequence_lens) != b.T):
        lens = np.ascontiguousarray(sequence_lens, dtype=np.intp)
        if lens.shape[0] != b.B or np.min(lens) < 0 or np.max(lens) > b.T:
            raise ValueError(f"sequence_lens must be {b.B} lengths from 0 to {b.T}")
        order = np.argsort(-np.asarray(lens), kind="stable")
        counts = np.searchsorted(-np.asarray(lens)[order], -np.arange(b.T))
        b.lens, b.order, b.counts = &lens[0], &order[0], &counts[0]
    run_layer(cells, reverse, &b, <float *>cnp.PyArray_DATA(y), cnp.PyArray_STRIDE(y, 1) // 4, address(h0), address(c0),
              address(y_h), address(y_c))
    return y_h, y_c


cdef int run_layer(tuple cells, tuple reverse, Batch *b, float *y, Py_ssize_t y_d, const float *h0, const float *c0,
                   float *y_h, float *y_c) except -1:
    """Every direction of a layer; y_d floats lie between the directions of y."""
    cdef Cell q
    cdef Workspace w
    cdef Py_ssize_t d, size = 0, of_h, of_c
    cdef unsigned mode
    for q in cells:
        size = max(size, lay_out(q, b, &w, NULL))
    cdef Buffer memory = borrow(size)
    for d in range(len(cells)):
        q = cells[d]
        b.reverse = reverse[d]
        b.y = y + d * y_d
        of_h, of_c = d * b.B * q.output_size, d * b.B * q.hidden_size
        with nogil:
            lay_out(q, b, &w, memory.p)
            memset(w.zeros, 0, q.output_size * sizeof(float))
            mode = active.flush_denormals()
            run_direction(q, b, &w, h0 + of_h if h0 != NULL else NULL, c0 + of_c if c0 != NULL else NULL, y_h + of_h,
                          y_c + of_c if y_c != NULL else NULL)
            active.restore_mode(mode)
    give_back(memory)
    return 0


def forward(tuple stack, tuple reverse, x, h0, c0, bint batch_first, int threads=1):
    """A stack of layers on whole sequences, directions concatenated, in one call: y, h, c.

    stack: for each layer its cells. x [T, B, I] ([B, T, I] with `batch_first`), h0 [layers * D, B, O], c0 [layers *
    D, B, H] or None. Returns None unless everything is float32 of fitting shapes, states contiguous: the caller then
    finds out what is wrong, or converts it.
    """
    cdef Py_ssize_t D = len(reverse), layers = len(stack), layer, of_h, of_c
    cdef Py_ssize_t time_axis = 1 if batch_first else 0
    cdef Cell q = stack[0][0]
    cdef Batch b
    cdef Py_ssize_t O = q.output_size, H = q.hidden_size
    if not is_float32(x) or cnp.PyArray_NDIM(x) != 3 or cnp.PyArray_DIM(x, 2) != q.input_size or not contiguous_rows(x):
        return None
    b.T, b.B = cnp.PyArray_DIM(x, time_axis), cnp.PyArray_DIM(x, 1 - time_axis)
    b.order = b.counts = b.lens = NULL
    if b.T == 0 or b.B == 0 or not is_state(h0, layers * D, b.B, O) or not is_state(c0, layers * D, b.B, H):
        return None
    h = new_array(3, layers * D, b.B, O)
    c = new_array(3, layers * D, b.B, H) if q.q.kind == CELL_LSTM else None
    cdef float *h0_p = address(h0)
    cdef float *c0_p = address(c0)
    cdef float *c_p = address(c)
    y = x
    for layer in range(layers):
        x = y
        y = new_array(3, b.B, b.T, D * O) if batch_first else new_array(3, b.T, b.B, D * O)
        b.x = address(x)
        b.x_t, b.x_b = cnp.PyArray_STRIDE(x, time_axis) // 4, cnp.PyArray_STRIDE(x, 1 - time_axis) // 4
        b.y_t, b.y_b = cnp.PyArray_STRIDE(y, time_axis) // 4, cnp.PyArray_STRIDE(y, 1 - time_axis) // 4
        of_h, of_c = layer * D * b.B * O, layer * D * b.B * H
        run_layer(stack[layer], reverse, &b, address(y), O, h0_p + of_h if h0_p != NULL else NULL,
                  c0_p + of_c if c0_p != NULL else NULL, address(h) + of_h, c_p + of_c if c_p != NULL else NULL)
    return y, h, c


cdef inline bint is_state(a, Py_ssize_t n, Py_ssize_t B, Py_ssize_t size) noexcept:
    return a is None or (is_float32(a) and cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_NDIM(a) == 3
                         and cnp.PyArray_DIM(a, 0) == n and cnp.PyArray_DIM(a, 1) == B
                         and cnp.PyArray_DIM(a, 2) == size)
