"""The engine: packed weights, the time loop, the choice of instruction set. float32; the GIL ends here.

Shapes are checked by the callers (rnnfast.nn, rnnfast.onnx); this module checks again only what would crash.
Workspaces are allocated once for each call, their size depends on the batch and the layer but not on the length.
"""
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.math cimport INFINITY
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign

cimport numpy as cnp

import os

import numpy as np

from rnnfast.errors import IsaError, LimitError

from rnnfast._kernels cimport *

cnp.import_array()

cdef enum:
    SPARE_BUFFERS = 4           # workspaces kept for later calls, each of at most SPARE_FLOATS
    SPARE_FLOATS = 1 << 20
    BLOCK = 16                  # columns of a block, VL of vec.h
    PROJECTION_FLOATS = 65536   # input projections that are held at once: they stay in the second-level cache

ctypedef void (*gemm_function)(const float *, int, const float *, int, float *, int, int, int, int, float) noexcept nogil

cdef const kernels *active = NULL
cdef gemm_function gemm = NULL

ACTIVATIONS = {
    "Relu": ACT_RELU, "Tanh": ACT_TANH, "Sigmoid": ACT_SIGMOID, "Affine": ACT_AFFINE, "LeakyRelu": ACT_LEAKY_RELU,
    "ThresholdedRelu": ACT_THRESHOLDED_RELU, "ScaledTanh": ACT_SCALED_TANH, "HardSigmoid": ACT_HARD_SIGMOID,
    "Elu": ACT_ELU, "Softsign": ACT_SOFTSIGN, "Softplus": ACT_SOFTPLUS,
}
FUNCTIONS = ACTIVATIONS | {"Exp": ACT_EXP, "Expm1": ACT_EXPM1, "Log": ACT_LOG, "Log1p": ACT_LOG1P, "Erf": ACT_ERF}
MATMULS = ("packed", "blas")


# ---------------------------------------------------------------------------------------------- instruction sets
def isas():
    """Names of the instruction sets that this CPU can run, best first."""
    names = []
    while rnnfast_kernels(len(names)) != NULL:
        names.append(rnnfast_kernels(len(names)).name.decode())
    return tuple(names)


def get_isa():
    """The name of the instruction set in use."""
    return active.name.decode()


def set_isa(name):
    """Use the kernels of one instruction set for every call from now on, in the whole process.

    `name` is one of ``isas()``. Results keep their bits. Raises IsaError for any other name.
    """
    global active
    known = isas()
    if name not in known:
        raise IsaError(f"instruction set {name!r} is not available: this CPU and build have {', '.join(known)}")
    active = rnnfast_kernels(known.index(name))


set_isa(os.environ.get("RNNFAST_ISA") or isas()[0])


def default_matmul():
    """'packed', or 'blas' on a processor for which there is no tuned kernel and where SciPy is installed."""
    if isas() != ("generic",):
        return "packed"
    from importlib.util import find_spec
    return "blas" if find_spec("scipy") else "packed"


cdef bint use_blas(matmul) except -1:
    """Whether `matmul` ('packed', 'blas' or None for the default) means BLAS, which is loaded when it first does."""
    global gemm
    if matmul is None:
        matmul = default_matmul()
    if matmul not in MATMULS:
        raise ValueError(f"matmul is {matmul!r}, expected one of {MATMULS} or None")
    if matmul == "blas" and gemm == NULL:
        from rnnfast import _blas
        capsule = _blas.__pyx_capi__["gemm"]
        gemm = <gemm_function>PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))
    return matmul == "blas"


# ---------------------------------------------------------------------------------------------- memory
cdef class Buffer:
    """Floats from a cache line on, with room for one block read past the end."""
    cdef float *p
    cdef readonly Py_ssize_t size

    def __cinit__(self, size):
        self.p = NULL
        self.size = size
        cdef size_t nbytes
        if size * 4 > 2**46:
            raise LimitError(f"a buffer of {size} floats does not fit the address space")
        nbytes = (self.size + BLOCK) * sizeof(float)
        if posix_memalign(<void **>&self.p, 64, nbytes) != 0:
            self.p = NULL
            raise LimitError(f"no memory for a buffer of {nbytes} bytes")

    def __dealloc__(self):
        free(self.p)


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


cdef const float nothing = 0.0


cdef inline Py_ssize_t blocks_of(Py_ssize_t units) noexcept nogil:
    return (units + BLOCK - 1) // BLOCK


cdef const float *data(const float[:, :, :] view):
    return &nothing if view.shape[0] == 0 or view.shape[1] == 0 or view.shape[2] == 0 else &view[0, 0, 0]


cdef inline bint is_float32(a) noexcept:
    """Whether `a` is an ndarray of native, aligned float32."""
    return cnp.PyArray_Check(a) and cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT32 and cnp.PyArray_ISBEHAVED_RO(a)


cdef inline bint contiguous_rows(cnp.ndarray a) noexcept:
    cdef int last = cnp.PyArray_NDIM(a) - 1
    return last >= 0 and (cnp.PyArray_DIM(a, last) <= 1 or cnp.PyArray_STRIDE(a, last) == 4)


cdef object readable(a):
    """float32, aligned, contiguous along the last axis; copied only if it is not so already."""
    if is_float32(a) and contiguous_rows(a):
        return a
    a = np.asarray(a, dtype=np.float32)
    if not a.flags.aligned or (a.ndim and a.shape[-1] > 1 and a.strides[-1] != 4):
        a = a.copy()
    return a


# ---------------------------------------------------------------------------------------------- elementwise
def unary(name, x, float alpha=0.0, float beta=0.0):
    """Elementwise function of a float32 array of any shape; `name` is a key of FUNCTIONS.

    Denormal inputs count as zero and denormal results are flushed to zero.
    """
    cdef activation act
    act.kind = FUNCTIONS[name]
    act.alpha = alpha
    act.beta = beta
    x = np.asarray(x, dtype=np.float32, order="C")
    x = x if x.flags.aligned else x.copy()
    y = np.empty_like(x)
    cdef const float[::1] source = x.reshape(-1)
    cdef float[::1] target = y.reshape(-1)
    cdef size_t n = source.shape[0]
    cdef const float *from_x
    cdef float *to_y
    cdef unsigned mode
    if n:
        from_x, to_y = &source[0], &target[0]
        with nogil:
            mode = active.flush_denormals()
            active.unary(act, from_x, to_y, n)
            active.restore_mode(mode)
    return y


# ---------------------------------------------------------------------------------------------- matrices
cdef class Matrix:
    """Weights [K, N] and a bias [N], packed once: ``multiply(x)`` is ``x @ weight + bias``.

    Every output is one chain of fused multiply-adds over k from its bias, so a row's bits do not depend on the
    other rows. With ``matmul="blas"`` they are BLAS's. `gates` cuts N into gates that are stored side by side.
    """
    cdef matrix m
    cdef Buffer weight, bias
    cdef bint blas
    cdef readonly Py_ssize_t K, N

    def __init__(self, weight, bias=None, *, matmul=None, int gates=1):
        weight = readable(weight)
        cdef Py_ssize_t k
        cdef const float[:, :] w = weight
        cdef const float *source = NULL
        if weight.size:
            source = &w[0, 0]
        self.blas = use_blas(matmul)
        self.K, self.N = weight.shape
        if self.N % gates:
            raise ValueError(f"{self.N} columns are not {gates} gates")
        self.m.k = self.K
        self.m.gates = gates
        self.m.units = self.N // gates
        self.m.blocks = gates * blocks_of(self.m.units)
        self.m.panel = 3 if gates == 3 else 4
        self.weight = Buffer(self.K * self.m.blocks * BLOCK)
        self.bias = Buffer(self.m.blocks * BLOCK)
        memset(self.bias.p, 0, self.bias.size * sizeof(float))
        cdef matrix row = self.m
        row.k = 1
        if bias is not None:
            bias = np.ascontiguousarray(bias, dtype=np.float32)
            if bias.shape != (self.N,):
                raise ValueError(f"bias of shape {bias.shape}, expected ({self.N},)")
            if self.N:
                rnnfast_pack(&row, <const float *><size_t>bias.ctypes.data, 0, 1, self.bias.p)
        if weight.size and not self.blas:
            rnnfast_pack(&self.m, source, w.strides[0] // 4, w.strides[1] // 4, self.weight.p)
        elif weight.size:
            # the same order of columns, one row after the other
            for k in range(self.K):
                rnnfast_pack(&row, source + k * (w.strides[0] // 4), 0, w.strides[1] // 4,
                             self.weight.p + k * self.m.blocks * BLOCK)
        self.m.w = self.weight.p
        self.m.bias = self.bias.p

    @property
    def nbytes(self):
        """Bytes that the packed form takes."""
        return 4 * (self.weight.size + self.bias.size)

    cdef void product(self, const float *a, Py_ssize_t lda, float *c, Py_ssize_t ldc, Py_ssize_t rows,
                      Py_ssize_t n) noexcept nogil:
        """c[rows, n] = bias + a[rows, K] . w, n columns in packed order; GIL-free, mode set by the caller"""
        cdef Py_ssize_t i
        if not self.blas:
            active.matmul(&self.m, a, lda, c, ldc, rows, n)
            return
        for i in range(rows):
            memcpy(c + i * ldc, self.m.bias, n * sizeof(float))
        if self.m.k and (lda >= self.m.k or rows == 1):
            gemm(a, max(lda, self.m.k), self.m.w, self.m.blocks * BLOCK, c, ldc, rows, self.m.k, n, 1.0)
        elif self.m.k:
            # BLAS takes no rows that overlap or run backwards
            for i in range(rows):
                gemm(a + i * lda, self.m.k, self.m.w, self.m.blocks * BLOCK, c + i * ldc, ldc, 1, self.m.k, n, 1.0)

    def multiply(self, x, out=None):
        """``x @ weight + bias`` for x [..., K] float32 -> [..., N] float32, one product for all leading axes.

        Rows of x may overlap: a 2-d view with any row stride (a framed signal) is not copied.
        """
        x = readable(x)
        if x.ndim == 0 or x.shape[-1] != self.K:
            raise ValueError(f"x has shape {x.shape}, expected [..., {self.K}]")
        shape = x.shape[:-1] + (self.N,)
        if x.ndim != 2:
            x = readable(x.reshape(-1, self.K) if x.size else np.zeros((int(np.prod(x.shape[:-1])), self.K), np.float32))
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"out must be a C-contiguous float32 array of shape {shape}")
        cdef const float[:, :, :] a = x[None]
        cdef float[:, ::1] c = out.reshape(-1, self.N)
        cdef Py_ssize_t rows = c.shape[0], done = 0, part
        cdef const float *source = data(a)
        cdef float *target = NULL
        cdef unsigned mode
        if rows and self.N:
            target = &c[0, 0]
            with nogil:
                mode = active.flush_denormals()
                while done < rows:
                    part = min(rows - done, 1 << 20)   # BLAS counts in int
                    self.product(source + done * (a.strides[1] // 4), a.strides[1] // 4, target + done * self.N,
                                 self.N, part, self.N)
                    done += part
                active.restore_mode(mode)
        return out


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
                  float *unprojected) noexcept nogil:
        """One step: h[rows] from h_prev[rows]; s holds the input projections, c and scratch."""
        s.h, s.ldh = h_prev, ldh
        s.h_out, s.ldo = h, ldo
        if self.project is not None:
            s.h_out, s.ldo = unprojected, self.hidden_size
        s.hr = NULL
        if self.r.blas:
            self.r.product(s.h, s.ldh, hr, self.q.r.blocks * BLOCK, s.rows, self.q.r.blocks * BLOCK)
            s.hr = hr
        if self.q.kind != CELL_GRU_RESET_FIRST:
            active.cell_step(&self.q, s)
            if self.project is not None:
                self.project.product(unprojected, self.hidden_size, h, ldo, s.rows, self.output_size)
            return
        active.gru_gates(&self.q, s)
        s.h, s.ldh = s.rh, self.padded
        if self.r.blas:
            self.r_candidate.product(s.rh, self.padded, hr, self.padded, s.rows, self.padded)
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
    w.steps = max(1, min(b.T, PROJECTION_FLOATS // max((columns + candidate_columns) * b.B, 1)))
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
                        float *xg) noexcept nogil:
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
        m.product(packed, I, xg, n, rows, n)
        return
    t = b.T - first - steps if b.reverse else first
    x = b.x + t * b.x_t
    if b.B == 1:
        m.product(x, b.x_t, xg, n, steps, n)
    elif b.x_t == b.B * b.x_b:
        m.product(x, b.x_b, xg, n, steps * b.B, n)
    elif steps < b.B:
        for s in range(steps):
            m.product(x + s * b.x_t, b.x_b, xg + s * b.B * n, n, b.B, n)
    else:
        for i in range(b.B):
            m.product(x + i * b.x_b, b.x_t, xg + i * n, b.B * n, steps, n)


cdef void run_direction(Cell q, Batch *b, Workspace *w, const float *h0, const float *c0, float *y_h,
                        float *y_c) noexcept nogil:
    """One direction over the whole batch: y, and the last output and cell state of each row."""
    cdef Py_ssize_t O = q.output_size, H = q.hidden_size, first, steps, s, i, row, t, at, rows
    cdef Py_ssize_t columns = q.q.r.blocks * BLOCK, candidate_columns = 0
    cdef const float *h = h0 if h0 != NULL else w.zeros
    cdef Py_ssize_t ldh = O if h0 != NULL else 0, ldo
    cdef float *h_new
    cdef step args
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
    first = 0
    while first < b.T:
        steps = min(w.steps, b.T - first)
        project_input(q.x, b, w.packed, q.input_size, first, steps, w.xg)
        if q.x_candidate is not None:
            project_input(q.x_candidate, b, w.packed, q.input_size, first, steps, w.xg_candidate)
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
            q.run(&args, h, ldh, h_new, ldo, w.hr, w.unprojected)
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
    if (cnp.PyArray_NDIM(a) != 3 or cnp.PyArray_DIM(a, 0) != D or cnp.PyArray_DIM(a, 1) != B
            or cnp.PyArray_DIM(a, 2) != size):
        raise ValueError(f"{name} has shape {a.shape}, expected {(D, B, size)}")
    return a


cdef inline float *address(a) noexcept:
    return NULL if a is None else <float *>cnp.PyArray_DATA(a)


def recurrent(tuple cells, tuple reverse, x, y, initial_h=None, initial_c=None, sequence_lens=None):
    """Runs one layer, one or both directions, over a batch of sequences.

    cells, reverse: D cells and whether each runs backwards. x [T, B, I] float32 with any strides of T and B.
    y: float32 [T, D, B, O], written whole, zeros past a row's end; any strides but along the last axis.
    initial_h [D, B, O], initial_c [D, B, H]: float32, zeros if None. sequence_lens [B], 0 to T, or None for T.
    Returns Y_h [D, B, O] and Y_c [D, B, H] (None but for LSTM): each row's state after its last step, zeros for
    rows of length 0. Shapes are the caller's to check.
    """
    cdef Py_ssize_t D = len(cells), d, size = 0
    cdef Cell q = cells[0], other
    cdef Batch b
    cdef Workspace w
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
    cdef float *h0_p = address(h0)
    cdef float *c0_p = address(c0)
    cdef float *y_h_p = address(y_h)
    cdef float *y_c_p = address(y_c)
    cdef float *y_p = <float *>cnp.PyArray_DATA(y)
    for other in cells:
        size = max(size, lay_out(other, &b, &w, NULL))
    cdef Buffer memory = borrow(size)
    cdef unsigned mode
    for d in range(D):
        q = cells[d]
        b.reverse = reverse[d]
        b.y = y_p + d * (cnp.PyArray_STRIDE(y, 1) // 4)
        with nogil:
            lay_out(q, &b, &w, memory.p)
            memset(w.zeros, 0, O * sizeof(float))
            mode = active.flush_denormals()
            run_direction(q, &b, &w, h0_p + d * b.B * O if h0_p != NULL else NULL,
                          c0_p + d * b.B * H if c0_p != NULL else NULL, y_h_p + d * b.B * O,
                          y_c_p + d * b.B * H if y_c_p != NULL else NULL)
            active.restore_mode(mode)
    give_back(memory)
    return y_h, y_c
