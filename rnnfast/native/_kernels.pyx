"""The C kernels for Python, in float32: instruction sets, threads, memory, elementwise functions, packed matrices."""
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.limits cimport INT_MAX
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign

cimport numpy as cnp

import os
from importlib.util import find_spec

import numpy as np

from rnnfast.errors import InputError, IsaError, LimitError, UnsupportedError
from rnnfast.native.weight_types import WEIGHT_TYPES, integer_columns

from rnnfast.native._interrupts cimport begin, finish

cnp.import_array()

ctypedef void (*gemm_function)(const float *, int, const float *, int, float *, int, int, int, int,
                               float) noexcept nogil

cdef extern from *:
    """
    #define LOAD(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
    """
    gemm_function load "LOAD"(gemm_function *) nogil
    void store "STORE"(gemm_function *, gemm_function) nogil

cdef gemm_function gemm = NULL

ACTIVATIONS = {
    "Relu": ACT_RELU, "Tanh": ACT_TANH, "Sigmoid": ACT_SIGMOID, "Affine": ACT_AFFINE, "LeakyRelu": ACT_LEAKY_RELU,
    "ThresholdedRelu": ACT_THRESHOLDED_RELU, "ScaledTanh": ACT_SCALED_TANH, "HardSigmoid": ACT_HARD_SIGMOID,
    "Elu": ACT_ELU, "Softsign": ACT_SOFTSIGN, "Softplus": ACT_SOFTPLUS,
}
FUNCTIONS = ACTIVATIONS | {
    "Exp": ACT_EXP, "Expm1": ACT_EXPM1, "Log": ACT_LOG, "Log1p": ACT_LOG1P, "Erf": ACT_ERF,
    "Sin": ACT_SIN, "Cos": ACT_COS, "Tan": ACT_TAN, "Atan": ACT_ATAN,
}
MATMULS = ("packed", "blas")


# ---------------------------------------------------------------------------------------------- instruction sets
def isas():
    """Return the names of the instruction sets that this CPU can run, best first."""
    names = []
    while rnnfast_kernels(len(names)) != NULL:
        names.append(rnnfast_kernels(len(names)).name.decode())
    return tuple(names)


def get_isa():
    """Return the name of the instruction set in use."""
    return active.name.decode()


def set_isa(name):
    """Use the kernels of one instruction set for all later calls in the whole process.

    Results have the same bits with every instruction set.

    Args:
        name: One of ``isas()``.

    Raises:
        IsaError: This CPU and build do not have the instruction set.
    """
    global active
    known = isas()
    if name not in known:
        raise IsaError(f"instruction set {name!r} is not available: this CPU and build have {', '.join(known)}")
    active = rnnfast_kernels(known.index(name))


set_isa(os.environ.get("RNNFAST_ISA") or isas()[0])


def default_matmul():
    """Return 'packed', or 'blas' on a processor without a tuned kernel if SciPy is installed."""
    return "blas" if isas() == ("generic",) and find_spec("scipy") else "packed"


def check_matmul(matmul):
    """Return the argument `matmul`: a key of MATMULS, or None for the default.

    Raises:
        InputError: It is something else.
        UnsupportedError: It is 'blas', and SciPy is not installed.
    """
    if matmul is not None and (type(matmul) is not str or matmul not in MATMULS):
        raise InputError(f"matmul: {matmul!r} is none of None, {', '.join(map(repr, MATMULS))}")
    if matmul == "blas" and find_spec("scipy") is None:
        raise UnsupportedError("matmul: 'blas' needs SciPy, which is not installed")
    return matmul


cdef bint use_blas(matmul) except -1:
    """Return whether `matmul` ('packed', 'blas' or None for the default) means BLAS. BLAS is loaded the first time."""
    if matmul is None:
        matmul = default_matmul()
    if matmul not in MATMULS:
        raise ValueError(f"matmul is {matmul!r}, expected one of {MATMULS} or None")
    if matmul == "blas" and load(&gemm) == NULL:
        from rnnfast.native import _blas
        capsule = _blas.__pyx_capi__["gemm"]
        store(&gemm, <gemm_function>PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)))
    return matmul == "blas"


# ---------------------------------------------------------------------------------------------- threads
cdef extern from "pool.h" nogil:
    void rnnfast_pool_start(int, unsigned (*)() noexcept nogil)
    int rnnfast_pool_limit()
    void rnnfast_pool_force(int)
    void rnnfast_team_open(team *, int, int)
    void rnnfast_team_split(team *, team_work, void *)
    void rnnfast_team_wait(team *, int, int)
    void rnnfast_team_each(team *, int, team_work, void *)
    void rnnfast_team_close(team *)


cdef int useful_threads(int threads) except -1:
    """Return how many of the threads that a call asks for may be used. Called with the GIL, before `team_open`.

    The limits of the process are determined when a call first asks for more than one thread, and again after a fork.
    """
    if threads <= 1:
        return 1
    if rnnfast_pool_limit() == 0:
        from rnnfast.native.threads import ceiling
        rnnfast_pool_start(ceiling(), active.flush_denormals)
    return min(threads, forced or rnnfast_pool_limit())


def force_threads(int threads):
    """For tests: give calls the threads that they ask for, up to `threads`, and wait until all of them have arrived.

    Neither the number of CPUs nor the size of the work limits them. 0 turns this off.
    """
    global forced
    forced = threads
    rnnfast_pool_force(threads)


cdef void team_open(team *t, int threads, bint brief) noexcept nogil:
    rnnfast_team_open(t, threads, brief)


cdef void team_split(team *t, team_work work, void *argument) noexcept nogil:
    rnnfast_team_split(t, work, argument)


cdef void team_wait(team *t, int part, int parts) noexcept nogil:
    rnnfast_team_wait(t, part, parts)


cdef void team_each(team *t, int items, team_work work, void *argument) noexcept nogil:
    rnnfast_team_each(t, items, work, argument)


cdef void team_close(team *t) noexcept nogil:
    rnnfast_team_close(t)


# ---------------------------------------------------------------------------------------------- memory
cdef class AlignedFloats:
    """Uninitialised floats from the start of a cache line on, with room to read one block past the end."""
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


cdef object readable(a):
    """Return `a` as aligned float32 that is contiguous along the last axis; copy it only if it is not such an array."""
    if is_float32(a) and contiguous_rows(a):
        return a
    a = np.asarray(a, dtype=np.float32)
    return a if is_float32(a) and contiguous_rows(a) else a.copy()


# ---------------------------------------------------------------------------------------------- elementwise
def unary(name, x, float alpha=0.0, float beta=0.0, out=None):
    """Apply an elementwise function, a key of FUNCTIONS, to a float32 array of any shape.

    Denormal inputs count as zero, and denormal results are flushed to zero. The result is written to `out` and `out` is
    returned if it is given: a C-contiguous, aligned and writeable float32 array of x's shape, which may be x itself but
    must not overlap it in any other way.

    Raises:
        ValueError: `out` is no such array.
    """
    cdef activation act
    act.kind = FUNCTIONS[name]
    act.alpha = alpha
    act.beta = beta
    if not is_float32(x) or not cnp.PyArray_IS_C_CONTIGUOUS(x):
        x = np.require(x, np.float32, ("C", "A"))
    if out is None:
        out = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.NPY_FLOAT32, 0)
    elif not is_float32(out) or not cnp.PyArray_ISCARRAY(out) or not cnp.PyArray_SAMESHAPE(out, x):
        raise ValueError(f"out must be a C-contiguous, aligned and writeable float32 array of shape {x.shape}")
    cdef const float *source = <const float *>cnp.PyArray_DATA(x)
    cdef float *target = <float *>cnp.PyArray_DATA(out)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x), at = 0
    cdef interrupt call
    cdef unsigned mode
    begin(&call, 0)
    with nogil:
        mode = active.flush_denormals()
        while at < n:
            active.unary(act, source + at, target + at, min(n - at, UNARY_PIECE))
            if n > UNARY_PIECE and spend(&call.watch, UNARY_PIECE):
                break
            at += UNARY_PIECE
        active.restore_mode(mode)
    finish(&call)
    return out


def adam(const float[::1] gradients, float[::1] values, float[::1] means, float[::1] squares, double b1, double b2,
         double eps, double rate):
    """Take a step of Adam on vectors of one size, in place. kernels/optimizer.h has the formula.

    Raises:
        ValueError: The sizes differ.
    """
    cdef adam_constants a = adam_constants(b1, 1 - b1, b2, 1 - b2, eps, rate)
    cdef Py_ssize_t n = gradients.shape[0]
    cdef unsigned mode
    if values.shape[0] != n or means.shape[0] != n or squares.shape[0] != n:
        raise ValueError("the vectors differ in size")
    if n == 0:
        return
    cdef const float *g = &gradients[0]
    cdef float *v = &values[0]
    cdef float *m = &means[0]
    cdef float *s = &squares[0]
    with nogil:
        mode = active.flush_denormals()
        active.adam(&a, g, v, m, s, n)
        active.restore_mode(mode)


# ---------------------------------------------------------------------------------------------- matrices
cdef void product(const weights *w, const float *a, Py_ssize_t lda, float *c, Py_ssize_t ldc, Py_ssize_t rows,
                  Py_ssize_t n, bint backwards, int part, int parts, interrupt *call) noexcept nogil:
    """Compute part `part` of `parts` of c[rows, n] = bias + a[rows, k] . w, with columns in packed order.

    The caller has set the floating-point mode. c does not alias a. A part is a share of the panels, or of the rows
    where there are too few panels. BLAS has threads of its own and is called for the whole product. A long product ends
    early if `call` is not NULL and is stopped.
    """
    cdef Py_ssize_t k = w.m.k, columns = w.m.blocks * BLOCK, first
    if parts > 1 and columns < 2 * parts * w.m.panel * BLOCK and rows >= parts:
        first = rows * part // parts
        rows = rows * (part + 1) // parts - first
        a += first * lda
        c += first * ldc
        part, parts = 0, 1
    cdef panels share
    if not w.blas:
        share = share_of(&w.m, part, parts)
        share.backwards = backwards
        multiply_panels(&w.m, share, a, lda, c, ldc, rows, n, call)
        return
    cdef Py_ssize_t count = rows, i = 0, j
    cdef watch own
    # BLAS takes no matrix whose rows overlap, run backwards or lie farther apart than an int can say.
    cdef bint whole = lda >= k and max(lda, ldc) <= INT_MAX
    if call != NULL:
        own = watch_of(call)
        count = max(1, <Py_ssize_t>(BLAS_COST / (1 + <double>k * columns / 64)) // BLAS_ROWS) * BLAS_ROWS
    while i < rows:
        # The rest of a product joins its last piece, as BLAS may have other bits for a few rows.
        count = rows - i if rows - i < 2 * count else count
        for j in range(i, i + count):
            memcpy(c + j * ldc, w.m.bias, n * sizeof(float))
            if k and not whole:
                gemm(a + j * lda, k, w.m.w, columns, c + j * ldc, n, 1, k, n, 1.0)
        if k and whole:
            gemm(a + i * lda, lda, w.m.w, columns, c + i * ldc, ldc, count, k, n, 1.0)
        if call != NULL and spend(&own, BLAS_COST):
            return
        i += count


cdef void multiply_panels(const matrix *w, panels share, const float *a, Py_ssize_t lda, float *c, Py_ssize_t ldc,
                          Py_ssize_t rows, Py_ssize_t n, interrupt *call) noexcept nogil:
    """Compute some panels of c[rows, n] = bias + a[rows, k] . w, in pieces if that takes long and `call` is not NULL.

    A piece is a few panels or, where a single one takes long, some rows of it: its weights then stay in the cache.
    """
    cdef double cost = <double>rows * w.k * w.panel * BLOCK / 64            # of a panel
    cdef Py_ssize_t left = share.last - share.first, some, at, count
    cdef panels piece
    cdef watch own
    if call == NULL or cost * left < PIECE_COST:
        active.matmul(w, share, a, lda, c, ldc, rows, n)
        return
    own = watch_of(call)
    some = max(1, <Py_ssize_t>(PIECE_COST / cost))
    count = max(1, <Py_ssize_t>(rows * min(1.0, PIECE_COST / cost)))
    piece = share
    while left > 0:
        some = min(some, left)
        if share.backwards:
            piece.first = piece.last - some
        else:
            piece.last = piece.first + some
        at = 0
        while at < rows:
            active.matmul(w, piece, a + at * lda, lda, c + at * ldc, ldc, min(count, rows - at), n)
            if spend(&own, PIECE_COST):
                return
            at += count
        if share.backwards:
            piece.last = piece.first
        else:
            piece.first = piece.last
        left -= some


cdef void pack(const matrix *m, const float *w, Py_ssize_t stride_k, Py_ssize_t stride_n, float *out) noexcept nogil:
    rnnfast_pack(m, w, stride_k, stride_n, out)


cdef double product_cost(const weights *w, Py_ssize_t rows) noexcept nogil:
    """Estimate the nanoseconds of a product: those of its arithmetic or of reading its weights, whichever are more."""
    cdef double size = <double>w.m.k * w.m.blocks * BLOCK
    cdef double floats = size * (1.0 if w.m.type == FLOAT32 else 0.25 if w.m.type == INT8 else 0.5)      # by bytes
    return max(rows * size / (128 if w.m.type == INT8 else 64), floats * (0.04 if floats <= 1 << 18 else 0.16))


# The arguments of Matrix.multiply.
cdef struct Multiply:
    const weights *w
    const float *x
    float *y
    Py_ssize_t lda, N, rows
    interrupt *call


cdef void multiply_part(void *argument, int part, int parts) noexcept nogil:
    """Do one part of Matrix.multiply."""
    cdef Multiply *m = <Multiply *>argument
    cdef Py_ssize_t done, rows
    for done in range(0, m.rows, 1 << 20):      # BLAS counts rows in int
        rows = min(m.rows - done, 1 << 20)
        product(m.w, m.x + done * m.lda, m.lda, m.y + done * m.N, m.N, rows, m.N, False,
                part, parts, m.call)


cdef class Matrix:
    """Weights [K, N] and a bias [N], packed once: ``multiply(x)`` is ``x @ weight + bias``.

    Every output is one chain of fused multiply-adds over k from its bias, so the bits of a row do not depend on the
    other rows. With ``matmul="blas"`` BLAS decides them. `gates` divides N into gates whose blocks are stored side by
    side. `weight_type` is a key of WEIGHT_TYPES, to whose values the weights are rounded, or None for float32.
    `expanded` holds weights of 16 bits as float32 in any case, as convolution commands read them.
    """
    def __init__(self, weight, bias=None, *, matmul=None, int gates=1, weight_type=None, bint expanded=False):
        weight = weight if is_float32(weight) else readable(weight)     # with any strides
        if cnp.PyArray_NDIM(weight) != 2:
            raise ValueError(f"weight has shape {weight.shape}, expected two axes")
        self.w.blas = use_blas(matmul)
        self.K, self.N = weight.shape
        if self.N % gates:
            raise ValueError(f"{self.N} columns are not {gates} gates")
        self.w.m.k = self.K
        self.w.m.gates = gates
        self.w.m.units = self.N // gates
        self.w.m.blocks = gates * blocks_of(self.w.m.units)
        self.w.m.panel = 3 if gates == 3 else 4
        if self.w.blas and max(self.K, self.w.m.blocks * BLOCK) > INT_MAX:
            raise LimitError(f"weight has shape {weight.shape}: BLAS counts in int, which ends at {INT_MAX}")
        self.bias = AlignedFloats(self.w.m.blocks * BLOCK)
        memset(self.bias.p, 0, self.bias.size * sizeof(float))
        self.w.m.bias = self.bias.p
        if bias is not None:
            bias = np.ascontiguousarray(bias, dtype=np.float32)
            if bias.shape != (self.N,):
                raise ValueError(f"bias of shape {bias.shape}, expected ({self.N},)")
            self.pack_row(bias, self.bias)
        row = None if weight_type is None else WEIGHT_TYPES[weight_type]
        if (row is not None and row.integers and not self.w.blas and LEAST_INPUTS <= self.K <= MOST_INPUTS
                and self.N >= LEAST_OUTPUTS):
            self.w.m.planes = 2 if row.activation_bits > 8 else 1
            integers, scales = integer_columns(weight)
            self.pack_integers(integers, scales)
        else:
            self.pack_floats(weight if row is None else row.rounded(weight))
            if row is not None and not row.integers and not expanded and not self.w.blas:
                self.shorten(FLOAT16 if row.name == "fp16" else BFLOAT16)

    cdef int pack_row(self, const float[::1] values, AlignedFloats out) except -1:
        """Write values [N] in the order of packed columns."""
        cdef matrix row = self.w.m
        row.k = 1
        if self.N:
            rnnfast_pack(&row, &values[0], 0, 1, out.p)
        return 0

    cdef int pack_floats(self, weight) except -1:
        """Pack float32 weights [K, N] with any strides."""
        cdef const float *source = <const float *>cnp.PyArray_DATA(weight)
        cdef Py_ssize_t stride_k = cnp.PyArray_STRIDE(weight, 0) // 4, stride_n = cnp.PyArray_STRIDE(weight, 1) // 4, k
        cdef matrix row = self.w.m
        row.k = 1
        self.weight = AlignedFloats(self.K * self.w.m.blocks * BLOCK)
        if weight.size and not self.w.blas:
            rnnfast_pack(&self.w.m, source, stride_k, stride_n, self.weight.p)
        elif weight.size:
            # The order of columns is the same, but each row is stored as a whole.
            for k in range(self.K):
                rnnfast_pack(&row, source + k * stride_k, 0, stride_n, self.weight.p + k * self.w.m.blocks * BLOCK)
        self.w.m.w = self.weight.p
        return 0

    cdef int shorten(self, int type) except -1:
        """Hold packed floats in 16 bits, which they fit, if there are so many that this is faster."""
        cdef Py_ssize_t size = self.weight.size
        if 4 * size <= LEAST_HALVED:
            return 0
        floats = np.asarray(<float[:size]>self.weight.p)
        halves = floats.astype(np.float16).view(np.uint16) if type == FLOAT16 else floats.view(np.uint32) >> 16
        cdef const uint16_t[::1] values = np.ascontiguousarray(halves, dtype=np.uint16)
        self.weight = AlignedFloats((size + 1) // 2)
        memcpy(self.weight.p, &values[0], size * sizeof(uint16_t))
        self.w.m.type, self.w.m.w, self.w.m.halves = type, NULL, <uint16_t *>self.weight.p
        return 0

    cdef int pack_integers(self, integers, scales) except -1:
        """Pack int8 weights [K, N] with the scales [N] of their columns."""
        cdef const int8_t[:, ::1] values = np.ascontiguousarray(integers)
        cdef Py_ssize_t columns = self.w.m.blocks * BLOCK
        self.weight = AlignedFloats((self.K + 3) // 4 * columns)
        self.scale = AlignedFloats(columns)
        memset(self.scale.p, 0, columns * sizeof(float))
        self.pack_row(scales, self.scale)
        if values.size:
            rnnfast_pack_integers(&self.w.m, &values[0, 0], <uint8_t *>self.weight.p)
        self.w.m.type, self.w.m.integers = INT8, <uint8_t *>self.weight.p
        self.w.m.scale = self.scale.p
        return 0

    @property
    def nbytes(self):
        """The bytes of the packed weights and bias."""
        return 4 * sum(part.size for part in (self.weight, self.bias, self.scale) if part is not None)

    @property
    def blas(self):
        """True if BLAS computes the product."""
        return bool(self.w.blas)

    @property
    def address(self):
        """The address of the weights for native programs, which must not outlive this object."""
        return <size_t>&self.w

    def cost(self, rows):
        """Estimate how many nanoseconds a product with so many rows takes."""
        return product_cost(&self.w, rows)

    def multiply(self, x, out=None, int threads=1):
        """Return ``x @ weight + bias``, float32 [..., N], for x [..., K], as one product for all leading axes.

        The rows of x may overlap: a 2-d view with any row stride (a framed signal) is not copied. Up to `threads`
        threads share the work if it is large enough, which does not change the bits (BLAS has threads of its own). The
        result is written to `out` if it is given, which must not overlap x.

        Raises:
            ValueError: x has another last axis, or `out` is not a C-contiguous, aligned and writeable float32 array of
                the result's shape.
        """
        x = readable(x)
        if x.ndim == 0 or x.shape[-1] != self.K:
            raise ValueError(f"x has shape {x.shape}, expected [..., {self.K}]")
        shape = x.shape[:-1] + (self.N,)
        if x.ndim != 2:
            x = readable(x.reshape(-1, self.K) if x.size else np.zeros((int(np.prod(shape[:-1])), self.K), np.float32))
        if out is None:
            out = np.empty(shape, np.float32)
        elif not is_float32(out) or not cnp.PyArray_ISCARRAY(out) or out.shape != shape:
            raise ValueError(f"out must be a C-contiguous, aligned and writeable float32 array of shape {shape}")
        cdef Py_ssize_t rows = cnp.PyArray_DIM(x, 0)
        cdef Multiply m
        cdef interrupt call
        cdef unsigned mode
        cdef team crew
        m.w, m.x, m.y = &self.w, <const float *>cnp.PyArray_DATA(x), <float *>cnp.PyArray_DATA(out)
        m.lda, m.N, m.rows = cnp.PyArray_STRIDE(x, 0) // 4, self.N, rows
        m.call = &call
        cdef double cost = product_cost(&self.w, rows)
        if self.w.blas or cost < SHARED_COST and not forced:
            threads = 1
        threads = useful_threads(threads)
        if rows and self.N:
            begin(&call, 0)
            with nogil:
                mode = active.flush_denormals()
                if threads == 1:
                    multiply_part(&m, 0, 1)
                else:
                    # There are more items than threads, so that one that arrives late still takes its share.
                    team_open(&crew, threads, cost < BRIEF_COST)
                    team_each(&crew, ITEMS * threads, multiply_part, &m)
                    team_close(&crew)
                active.restore_mode(mode)
            finish(&call)
        return out
