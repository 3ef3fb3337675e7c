"""Native programs: commands on buffers, run in one call without the GIL. kernels/program.h describes the commands."""
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport INT64_MAX, int64_t

cimport numpy as cnp

import os

import numpy as np

from rnnfast.errors import LimitError, with_location
from rnnfast.native._engine import Prepared

from rnnfast.native._arrays cimport nbytes_of
from rnnfast.native._kernels cimport *

cnp.import_array()

cdef extern from "program.h" nogil:
    void rnnfast_copy(const command *, const context *)
    void rnnfast_elementwise(const command *, const context *)
    void rnnfast_clear_statuses(const command *, const context *)
    void rnnfast_depthwise(const command *, const context *)
    void rnnfast_reduce(const command *, const context *)
    void rnnfast_rows(const command *, const context *)
    void rnnfast_pool(const command *, const context *)
    void rnnfast_gather(const command *, const context *)
    void rnnfast_integer(const command *, const context *)
    void rnnfast_running(const command *, const context *)
    void rnnfast_order(const command *, const context *)
    void rnnfast_call(const command *, const context *)
    void rnnfast_branch(const command *, const context *)
    void rnnfast_loop(const command *, const context *)
    void rnnfast_execute(const Py_ssize_t *, Py_ssize_t, const context *)
    void rnnfast_execute_timed(const Py_ssize_t *, Py_ssize_t, const context *, int64_t *)

cdef enum:
    ROW_AXES = 3
    LONG_LINES = 4      # times PIECE_COST: a line of a convolution that takes longer is done in pieces


cdef struct product_command:
    # c[rows, n] = bias + a[rows, k] . w, where the rows lie along three axes with strides in floats; c does not alias a
    command head
    const weights *w
    location a, c
    Py_ssize_t n
    Py_ssize_t[ROW_AXES] rows, lda, ldc
    Py_ssize_t cost


# The arguments of product_part.
cdef struct Product:
    const product_command *m
    const float *a
    float *c
    const context *x


cdef void product_part(void *argument, int part, int parts) noexcept nogil:
    """Do one part of a product_command."""
    cdef Product *p = <Product *>argument
    cdef const product_command *m = p.m
    cdef Py_ssize_t i, j
    for i in range(m.rows[0]):
        for j in range(m.rows[1]):
            product(m.w, p.a + i * m.lda[0] + j * m.lda[1], m.lda[2], p.c + i * m.ldc[0] + j * m.ldc[1], m.ldc[2],
                    m.rows[2], m.n, p.x.backwards ^ (j & 1), part, parts, p.x.watch.call)
            if stopped(p.x.watch.call):
                return


cdef void run_product(const command *c, const context *x) noexcept nogil:
    """Run a product_command."""
    cdef const product_command *m = <const product_command *>c
    cdef Product p
    cdef team crew
    p.m, p.x = m, x
    p.a, p.c = <const float *>address_of(x, m.a), <float *>address_of(x, m.c)
    if x.threads > 1 and (m.cost >= SHARED_COST or forced):
        team_open(&crew, x.threads, m.cost < BRIEF_COST)
        team_each(&crew, ITEMS * x.threads, product_part, &p)
        team_close(&crew)
    else:
        product_part(&p, 0, 1)
    x.watch.left -= m.cost


cdef struct multiply_command:
    # c[rows, n] = a[rows, k] . b[k, n] for each of `shape` matrices, with strides in floats. c aliases nothing. b is
    # packed to `packed`, only once if the same b follows.
    command head
    location a, b, c, packed, zeros
    Py_ssize_t[ROW_AXES] shape, of_a, of_b, of_c
    Py_ssize_t rows, k, n, lda, ldc, stride_k, stride_n


cdef void run_multiply(const command *head, const context *x) noexcept nogil:
    """Run a multiply_command."""
    cdef const multiply_command *m = <const multiply_command *>head
    cdef const float *a = <const float *>address_of(x, m.a)
    cdef const float *b = <const float *>address_of(x, m.b)
    cdef const float *last = NULL
    cdef const float *one
    cdef float *c = <float *>address_of(x, m.c)
    cdef float *packed = <float *>address_of(x, m.packed)
    cdef matrix w = packed_floats(packed, <const float *>address_of(x, m.zeros), m.k, m.n)
    cdef Py_ssize_t i, j, k, block, blocks
    cdef matrix some
    cdef int64_t cost = <int64_t>(<double>m.rows * m.k * m.n / 64)
    blocks = w.panel * max(1, (1 << 16) // max(1, m.k))      # that are packed before the work is counted
    for i in range(m.shape[0]):
        for j in range(m.shape[1]):
            for k in range(m.shape[2]):
                one = b + i * m.of_b[0] + j * m.of_b[1] + k * m.of_b[2]
                if one != last:
                    some = w
                    block = 0
                    while block < w.blocks:
                        some.units, some.blocks = m.n - block * BLOCK, min(blocks, w.blocks - block)
                        pack(&some, one + block * BLOCK * m.stride_n, m.stride_k, m.stride_n,
                             packed + block * BLOCK * m.k)
                        if spend(x.watch, some.blocks * m.k * 4):
                            return
                        block += blocks
                    last = one
                multiply_panels(&w, share_of(&w, 0, 1), a + i * m.of_a[0] + j * m.of_a[1] + k * m.of_a[2], m.lda,
                                c + i * m.of_c[0] + j * m.of_c[1] + k * m.of_c[2], m.ldc, m.rows, m.n, x.watch.call)
                if spend(x.watch, cost):
                    return


cdef extern from "program.h" nogil:
    ctypedef struct convolution_command:
        Py_ssize_t cost
        Py_ssize_t[3] shape
    ctypedef struct convolved_command:
        command convolution


# The arguments of convolution_part.
cdef struct Convolution:
    const command *c
    const command *then
    const context *x


cdef void convolution_part(void *argument, int part, int parts) noexcept nogil:
    """Do one part of a convolution_command, unless the call was stopped."""
    cdef Convolution *p = <Convolution *>argument
    if parts > 1 and look_at(p.x.watch.call):
        return
    p.x.isa.convolution(p.c, p.then, p.x, part, parts)


cdef void convolve(const command *c, const command *then, const context *x) noexcept nogil:
    """Run a convolution_command and, if `then` is not NULL, the elementwise_command that reads its outputs."""
    cdef const convolution_command *m = <const convolution_command *>c
    cdef int parts = ITEMS * x.threads, part
    cdef Convolution p
    cdef team crew
    p.c, p.then, p.x = c, then, x
    if then != NULL:
        rnnfast_clear_statuses(then, x)
    if x.threads > 1 and (m.cost >= SHARED_COST or forced):
        if m.cost // PIECE_COST > parts:
            parts = min(m.cost // PIECE_COST, max(parts, m.shape[0] * m.shape[1] // 2))
        if m.shape[0] * m.shape[1] < 2 * parts:         # parts are not whole lines
            p.then = NULL
        team_open(&crew, x.threads, m.cost < BRIEF_COST)
        team_each(&crew, parts, convolution_part, &p)
        team_close(&crew)
        if p.then != then:
            x.isa.elementwise(then, x)
    elif m.cost < 2 * PIECE_COST:
        convolution_part(&p, 0, 1)
    else:                                               # parts that are whole lines, unless these take long
        if m.cost > LONG_LINES * PIECE_COST * m.shape[0] * m.shape[1]:
            p.then = NULL
        parts = min(m.cost // PIECE_COST, max(1, m.shape[0] * m.shape[1] // 2) if p.then != NULL else 1 << 20)
        for part in range(parts):
            convolution_part(&p, part, parts)
        if p.then != then:
            x.isa.elementwise(then, x)
    x.watch.left -= m.cost


cdef void run_convolution(const command *c, const context *x) noexcept nogil:
    """Run a convolution_command."""
    convolve(c, NULL, x)


cdef void run_convolved(const command *c, const context *x) noexcept nogil:
    """Run a convolved_command."""
    cdef const command *first = &(<const convolved_command *>c).convolution
    convolve(first, <const command *>(<const Py_ssize_t *>first + first.words), x)


# The limits of program.h: axes of a command, buffers of a program, axes of an output.
LIMITS = {"axes": AXES, "buffers": MAX_BUFFERS, "rank": MAX_RANK}

# The function that runs each command.
COMMANDS = {
    "multiply": <size_t>&run_multiply,
    "copy": <size_t>&rnnfast_copy,
    "elementwise": <size_t>&rnnfast_elementwise,
    "depthwise": <size_t>&rnnfast_depthwise,
    "reduce": <size_t>&rnnfast_reduce,
    "rows": <size_t>&rnnfast_rows,
    "pool": <size_t>&rnnfast_pool,
    "gather": <size_t>&rnnfast_gather,
    "integer": <size_t>&rnnfast_integer,
    "running": <size_t>&rnnfast_running,
    "convolution": <size_t>&run_convolution,
    "convolved": <size_t>&run_convolved,
    "order": <size_t>&rnnfast_order,
    "call": <size_t>&rnnfast_call,
    "branch": <size_t>&rnnfast_branch,
    "loop": <size_t>&rnnfast_loop,
    "product": <size_t>&run_product,
    "recurrent": Prepared.command,
}


def address(cnp.ndarray view):
    """Return the address of an array's first element."""
    return <size_t>cnp.PyArray_DATA(view)


cdef void execute(const Py_ssize_t *words, Py_ssize_t n_words, const context *x) noexcept nogil:
    rnnfast_execute(words, n_words, x)


cdef class NativeProgram:
    """Native steps in one call without the GIL: takes arrays of the types and shapes of `inputs`, returns new arrays.

    Args:
        program: The words, as described in program.h.
        arena: The bytes of all intermediate results.
        live: The most of these bytes that are needed at the same time.
        inputs, outputs: A pair (shape, type) for each input and each output.
        keep: The objects that the program points to, which are kept alive.
        notes: A CommandNote for each command, or a function that returns them.
        checks: For each command that may report a value out of range: (where in the arena its status is, the class of
            the error, a message with a place for the value, where it stands in the file).
        threads: The most threads to use.
        loops: Whether there are loops.
        iterations, work: What its loops may take together in a run that is a call of its own: iterations, and the work
            of those whose trip counts are not known.
        arenas: Where runs borrow their arena.
        seconds: After how many seconds a run is stopped; None for never.
    """
    def __init__(self, program, arena, live, inputs, outputs, keep, notes, checks, threads, loops, iterations, work,
                 Arenas arenas, seconds=None):
        cdef Py_ssize_t i, j, at = 0
        cdef cnp.ndarray code = np.array(program, np.intp), noted = np.array([offset for offset, *_ in checks], np.intp)
        self.arrays, self.n_words, self.n_noted = (code, noted), code.size, noted.size
        self.words, self.noted = <const Py_ssize_t *>cnp.PyArray_DATA(code), <const Py_ssize_t *>cnp.PyArray_DATA(noted)
        self.arena, self.live, self.keep, self.noted_commands = arena, live, keep, notes
        self.checks, self.threads, self.loops = tuple(checks), threads, loops
        self.allowed.iterations, self.allowed.work = iterations, work
        self.inputs = tuple(inputs)
        self.outputs = tuple([(shape, np.dtype(dtype)) for shape, dtype in outputs])
        self.arenas, self.seconds = arenas, 0 if seconds is None else seconds
        if 2 + len(self.inputs) + len(self.outputs) > MAX_BUFFERS:
            raise LimitError(f"{len(self.inputs)} inputs and {len(self.outputs)} outputs of a native step")
        self.n_outputs = len(self.outputs)
        for i, (shape, dtype) in enumerate(self.outputs):
            self.types[i], self.axes[i], self.first_axis[i] = dtype.num, len(shape), at
            for j in range(len(shape)):
                self.shapes[at] = shape[j]
                at += 1
        if os.environ.get("RNNFAST_VERIFY") == "1":
            from rnnfast.native.verify import verify
            verify(self)

    def __call__(self, *args):
        return self.run(args)

    @property
    def notes(self):
        """A CommandNote for each command."""
        if type(self.noted_commands) is not tuple:
            self.noted_commands = self.noted_commands()
        return self.noted_commands

    @property
    def nbytes(self):
        """The bytes of the arena and the outputs."""
        return self.arena + sum([nbytes_of(shape, dtype) for shape, dtype in self.outputs])

    @property
    def code(self):
        """A copy of the program's words, [n_words] intp."""
        return self.arrays[0].copy()

    @property
    def address(self):
        """The address of the program's words."""
        return <size_t>self.words

    def held(self):
        """Return the objects that hold its memory besides the arena: its words, constants, and what they point to."""
        objects = [self.arrays[0]]
        for kept in self.keep:
            objects += kept.held() if type(kept) is NativeProgram else [kept]
        return objects

    def times(self, *args, Py_ssize_t rounds=100):
        """Return the least nanoseconds that each command took in so many whole runs, in the order of `notes`."""
        cdef context x
        cdef char *buffers[MAX_BUFFERS]
        cdef loop_allowance left
        cdef interrupt call
        cdef block *memory
        cdef cnp.ndarray least = np.full(len(self.notes), INT64_MAX)
        cdef int64_t *of_command = <int64_t *>cnp.PyArray_DATA(least)
        cdef Py_ssize_t _round
        cdef unsigned mode
        args = tuple([np.require(value, requirements=("C", "A")) for value in args])
        memory = self.arenas.borrow(self.arena)
        try:
            # The results keep the outputs alive.
            _results = self.prepare(&x, buffers, &left, &call, memory_of(memory), args)
            with nogil:
                mode = active.flush_denormals()
                for _round in range(rounds):
                    left = self.allowed
                    rnnfast_execute_timed(self.words, self.n_words, &x, of_command)
                active.restore_mode(mode)
            finish(&call)
        finally:
            self.arenas.give_back(memory)
        return least.tolist()

    cdef tuple run(self, tuple args):
        """Run the program on arrays of the types and shapes of `inputs`, as a call of its own. Returns new arrays."""
        cdef loop_allowance left = self.allowed
        return self.run_within(args, &left)

    cdef tuple run_within(self, tuple args, loop_allowance *left):
        """Run the program as a part of a call whose loops may still take `left`, which counts down."""
        cdef char *buffers[MAX_BUFFERS]
        cdef context x
        cdef Py_ssize_t i
        cdef unsigned mode
        cdef interrupt call
        cdef block *memory
        cdef tuple results
        for i in range(len(args)):
            if not cnp.PyArray_ISCARRAY_RO(args[i]):
                args = tuple([np.require(value, requirements=("C", "A")) for value in args])
                break
        memory = self.arenas.borrow(self.arena)
        try:
            results = self.prepare(&x, buffers, left, &call, memory_of(memory), args)
            with nogil:
                mode = active.flush_denormals()
                rnnfast_execute(self.words, self.n_words, &x)
                active.restore_mode(mode)
            finish(&call)
            if self.n_noted:
                self.check(memory_of(memory))
        finally:
            self.arenas.give_back(memory)
        return results

    cdef tuple prepare(self, context *x, char **buffers, loop_allowance *left, interrupt *call, char *arena,
                       tuple args):
        """Return new outputs, begin the call, and set x and buffers for a run on this arena."""
        cdef Py_ssize_t i, n = len(args)
        cdef tuple results = PyTuple_New(self.n_outputs)
        buffers[0], buffers[1] = NULL, arena
        for i in range(n):
            buffers[2 + i] = <char *>cnp.PyArray_DATA(args[i])
        for i in range(self.n_outputs):
            value = self.new_output(i)
            Py_INCREF(value)
            PyTuple_SET_ITEM(results, i, value)
            buffers[2 + n + i] = <char *>cnp.PyArray_DATA(value)
        x.buffers, x.isa, x.iteration, x.left = buffers, active, 0, left
        x.threads = 1 if self.threads == 1 else useful_threads(self.threads)
        x.backwards = turn(&self.turns) & 1
        begin(call, self.seconds)
        x.watch = &call.watch
        return results

    cdef object new_output(self, Py_ssize_t i):
        """Return a new array for output i, uninitialised."""
        return cnp.PyArray_EMPTY(self.axes[i], self.shapes + self.first_axis[i], self.types[i], 0)

    cdef bint failed(self, const char *arena) noexcept nogil:
        """Return whether a run on this arena found a value that was out of range."""
        cdef Py_ssize_t i
        for i in range(self.n_noted):
            if (<const int64_t *>(arena + self.noted[i]))[0]:
                return True
        return False

    cdef int check(self, const char *arena) except -1:
        """Raise the error of the first check that found a value out of range in a run on this arena."""
        cdef const int64_t *status
        cdef Py_ssize_t offset
        for offset, error, message, where in self.checks:
            status = <const int64_t *>(arena + offset)
            if status[0]:
                raise with_location(error(message.format(status[1])), where)
        return 0
