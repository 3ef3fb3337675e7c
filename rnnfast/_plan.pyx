"""Plans, and which of them takes a call's inputs: all that a call does besides its steps."""
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memcmp, memcpy, memset

cimport numpy as cnp

import math

import numpy as np

from rnnfast._engine import Prepared, recurrent
from rnnfast.errors import InputError, LimitError, located

from rnnfast._kernels cimport *

cnp.import_array()


# ---------------------------------------------------------------------------------------------- inputs
def pattern(value):
    """What a plan depends on of an input: an array of its type and shape without its data, a list of them, or None."""
    if type(value) is list:
        return [pattern(v) for v in value]
    return None if value is None else np.broadcast_to(np.empty((), value.dtype), value.shape)


cdef bint same_type(cnp.ndarray a, cnp.ndarray b):
    return cnp.PyArray_SAMESHAPE(a, b) and (cnp.PyArray_DESCR(a) is cnp.PyArray_DESCR(b) or a.dtype == b.dtype)


cpdef bint is_like(value, like):
    """Whether a value is an array of the type and shape of `like`, an array or None."""
    return like is not None and type(value) is cnp.ndarray and same_type(value, like)


cdef bint same_values(value, cnp.ndarray expected) except -1:
    """Of arrays of the same type and shape."""
    if not cnp.PyArray_Check(value) or not cnp.PyArray_ISCARRAY_RO(value):
        value = np.require(value, expected.dtype, ("C", "A"))
    return memcmp(cnp.PyArray_DATA(value), cnp.PyArray_DATA(expected), cnp.PyArray_NBYTES(expected)) == 0


cdef bint matches(value, like) except -1:
    """Whether a value has the types and shapes of a pattern."""
    cdef Py_ssize_t i
    if type(value) is cnp.ndarray and type(like) is cnp.ndarray:
        return same_type(value, like)
    if value is None or like is None:
        return value is like
    if type(value) is not list and type(like) is not list:
        return same_type(np.asarray(value), like)
    if type(value) is not type(like) or len(value) != len(like):
        return False
    for i in range(len(like)):
        if not matches(value[i], like[i]):
            return False
    return True


# ---------------------------------------------------------------------------------------------- outputs
def separate(list outputs, list args):
    """Outputs as writeable arrays that share memory with no argument, constant or other output.

    Constants are marked read-only. What is a view, or an argument or output that came before, is copied.
    """
    taken = {id(v) for a in args for v in (a if type(a) is list else (a,))}
    return [own(value, taken) for value in outputs]


cdef object own(value, set taken):
    if type(value) is list:
        return [own(v, taken) for v in value]
    if value is None:
        return None
    flags = value.flags
    if id(value) in taken or not (flags.owndata and flags.writeable and flags.c_contiguous):
        value = np.array(value, order="C")
    taken.add(id(value))
    return value


# ---------------------------------------------------------------------------------------------- plans
cdef class Plan:
    """Steps on a list of values, for inputs of one set of types and shapes: immutable, run by many threads at once.

    args: inputs like those that it takes. template: the values before a run (what is known, None for the rest; inputs
    come first, then the call's Budget). steps: (callable, the places of its inputs, the places of its outputs, those of
    them that may be large, the places of values that no later step needs, where it stands in the file). outputs: their
    places. budget: makes a call's Budget, None if no step needs one. folded: the Folded of what the template keeps.
    pinned: the inputs whose values it takes only as they are in `args`. bare: the steps as they were before any of them
    got a meter. results: arrays like the outputs, if their types and shapes follow from those of the inputs, else None.
    """
    cdef tuple inputs
    cdef readonly tuple pinned
    cdef readonly list template
    cdef list rest
    cdef readonly tuple steps, outputs, bare, results
    cdef object budget, folded
    cdef readonly bint native, fresh, compiled
    cdef Segment whole          # the only step, of arguments in their order, or None
    cdef tuple order            # of its results that are the outputs

    def __init__(self, args, list template, tuple steps, tuple outputs, budget, folded, pinned, bare, results):
        self.inputs, self.bare, self.results = tuple(map(pattern, args)), bare, results
        self.pinned = tuple([(i, np.array(args[i])) for i in pinned])
        self.rest = template[len(args):]
        self.template, self.steps, self.outputs, self.budget, self.folded = template, steps, outputs, budget, folded
        native = [step for step in steps if type(step[0]) in (Recurrent, Segment)]
        self.compiled = any([type(step[0]) is Segment for step in steps])
        self.whole = None
        if len(steps) == 1 and type(steps[0][0]) is Segment and budget is None:
            if max(steps[0][1], default=0) < len(args) and set(outputs) <= set(steps[0][2]):
                self.whole = steps[0][0]
                self.order = tuple([steps[0][2].index(place) for place in outputs])
        made = {place for _, _, places, *_ in native for place in places}
        self.native = len(native) == len(steps)
        self.fresh = made.issuperset(outputs) and len(set(outputs)) == len(outputs)

    @property
    def nbytes(self):
        """Of the results of all steps, intermediate ones of native steps included; None where that is not known."""
        total = 0
        for step in self.bare:
            if type(step.run) is Segment:
                total += step.run.nbytes
            elif step.results:
                total += sum([size_of(v.shape, v.dtype) for v in step.results if v is not None])
            else:
                return None
        return total

    cdef bint fits(self, list args) except -1:
        """Whether it takes the types and shapes."""
        cdef Py_ssize_t i
        for i in range(len(args)):
            if not matches(args[i], self.inputs[i]):
                return False
        return True

    cdef bint takes(self, list args) except -1:
        cdef Py_ssize_t i
        cdef tuple pin
        if not self.fits(args):
            return False
        for pin in self.pinned:
            i = pin[0]
            if not same_values(args[i], pin[1]):
                return False
        return True

    cpdef list shared(self, list args, budget=None):
        """The outputs, which may share memory with arguments and with each other."""
        cdef list values = args + self.rest
        cdef tuple step, inputs, outputs, large, released
        cdef Py_ssize_t i
        if budget is None and self.budget is not None:
            budget = self.budget(args)
        values[len(args)] = budget
        where = ""
        try:
            for step in self.steps:
                run, inputs, outputs, large, released, where = step
                result = run(*gathered(values, inputs))
                if type(result) is tuple:
                    for i in range(min(len(outputs), len(<tuple>result))):
                        values[place(outputs, i)] = (<tuple>result)[i]
                else:
                    values[place(outputs, 0)] = result
                if budget is not None:
                    for i in range(len(large)):
                        budget.count(values[place(large, i)])
                for i in range(len(released)):
                    values[place(released, i)] = None
        except Exception as e:
            raise located(e, where) from e
        return [values[place(self.outputs, i)] for i in range(len(self.outputs))]

    cdef list run(self, list args):
        """The outputs as arrays of their own."""
        cdef list outputs
        cdef tuple results
        cdef Py_ssize_t i
        if self.whole is not None and self.fresh:
            try:
                results = self.whole.run(gathered(args, (<tuple>self.steps[0])[1]))
            except Exception as e:
                raise located(e, (<tuple>self.steps[0])[5]) from e
            return [results[place(self.order, i)] for i in range(len(self.order))]
        if self.native:
            outputs = self.shared(args)
        else:
            with np.errstate(all="ignore"):
                outputs = self.shared(args)
        return outputs if self.fresh else separate(outputs, args)


cdef size_of(shape, dtype):
    return math.prod(shape) * dtype.itemsize


cdef inline Py_ssize_t place(tuple places, Py_ssize_t i) except -1:
    return places[i]


cdef tuple gathered(list values, tuple places):
    cdef tuple args = PyTuple_New(len(places))
    cdef Py_ssize_t i
    for i in range(len(places)):
        value = values[place(places, i)]
        Py_INCREF(value)
        PyTuple_SET_ITEM(args, i, value)
    return args


cdef class Plans:
    """The plans of a program, the last used first; at most `most`. names: of the inputs, in the order of arguments.

    The tuple `kept` is replaced, never changed: what one thread may lose of another's changes is traced again.
    """
    cdef readonly tuple names, kept
    cdef readonly Py_ssize_t most

    def __init__(self, names, most):
        self.names, self.most, self.kept = tuple(names), most, ()

    cpdef Plan find(self, list args):
        """The plan that takes these arguments, or None."""
        cdef tuple kept = self.kept
        cdef Plan plan
        cdef Py_ssize_t i
        for i in range(len(kept)):
            plan = kept[i]
            if plan.takes(args):
                if i:
                    self.kept = (plan, *kept[:i], *kept[i + 1:])
                return plan
        return None

    def specialised(self, list args):
        """How many plans there are for these types and shapes and for values of theirs."""
        cdef Plan plan
        return len([plan for plan in self.kept if plan.pinned and plan.fits(args)])

    def add(self, Plan plan, list args):
        """Keep the plan of these arguments."""
        cdef Plan other
        others = [other for other in self.kept if not other.takes(args)]
        self.kept = (plan, *others[:self.most - 1])

    def run(self, feed):
        """The outputs, as arrays of their own, for a dict of arrays that a plan takes as they are; else None."""
        cdef PyObject *value
        cdef list args
        cdef Plan plan
        cdef Py_ssize_t i
        if type(feed) is not dict or len(<dict>feed) != len(self.names):
            return None
        args = [None] * len(self.names)
        for i in range(len(self.names)):
            value = PyDict_GetItem(feed, self.names[i])
            if value == NULL or type(<object>value) is not cnp.ndarray:
                return None
            args[i] = <object>value
        plan = self.find(args)
        return None if plan is None else plan.run(args)


# ---------------------------------------------------------------------------------------------- steps
cdef class Recurrent:
    """A recurrent node with layout 0 on packed weights, for inputs whose types and shapes were checked: Y, Y_h[, Y_c].

    cells, reverse: the engine's. absent_h, absent_c: take no such state. check_lengths(sequence_lens, T, rows) raises
    for a length that is out of range.
    """
    cdef tuple cells, reverse
    cdef cnp.npy_intp[4] of_y
    cdef readonly tuple shape   # of Y
    cdef bint absent_h, absent_c
    cdef object check_lengths
    cdef int threads

    def __init__(self, cells, reverse, T, rows, *, absent_h, absent_c, check_lengths, threads):
        self.cells, self.reverse, self.threads = cells, reverse, threads
        self.of_y = [T, len(cells), rows, cells[0].output_size]
        self.shape = tuple(self.of_y)
        self.absent_h, self.absent_c, self.check_lengths = absent_h, absent_c, check_lengths

    def __call__(self, X, W, R, B=None, sequence_lens=None, initial_h=None, initial_c=None, P=None):
        if sequence_lens is not None:
            self.check_lengths(sequence_lens, self.of_y[0], self.of_y[2])
        if self.absent_h:
            initial_h = None
        if self.absent_c:
            initial_c = None
        y = cnp.PyArray_EMPTY(4, self.of_y, cnp.NPY_FLOAT32, 0)
        y_h, y_c = recurrent(self.cells, self.reverse, X, y, initial_h, initial_c, sequence_lens, self.threads)
        return (y, y_h) if y_c is None else (y, y_h, y_c)


# ---------------------------------------------------------------------------------------------- native steps
cdef extern from "program.h" nogil:
    void rnnfast_copy(const command *, const context *)
    void rnnfast_elementwise(const command *, const context *)
    void rnnfast_depthwise(const command *, const context *)
    void rnnfast_reduce(const command *, const context *)
    void rnnfast_rows(const command *, const context *)
    void rnnfast_pool(const command *, const context *)
    void rnnfast_gather(const command *, const context *)
    void rnnfast_integer(const command *, const context *)
    void rnnfast_order(const command *, const context *)
    void rnnfast_call(const command *, const context *)
    void rnnfast_branch(const command *, const context *)
    void rnnfast_loop(const command *, const context *)
    void rnnfast_execute(const Py_ssize_t *, Py_ssize_t, const context *)
    void rnnfast_execute_timed(const Py_ssize_t *, Py_ssize_t, const context *, int64_t *)

cdef enum:
    SPARE_ARENAS = 8            # kept of each segment for later calls
    ROW_AXES = 3


cdef struct product_command:
    # `rows` of a and c, along three axes by strides in floats
    command head
    const weights *w
    location a, c
    Py_ssize_t n
    Py_ssize_t[ROW_AXES] rows, lda, ldc
    Py_ssize_t cost


cdef struct Product:
    const product_command *m
    const float *a
    float *c
    const context *x


cdef void product_part(void *argument, int part, int parts) noexcept nogil:
    cdef Product *p = <Product *>argument
    cdef const product_command *m = p.m
    cdef Py_ssize_t i, j
    for i in range(m.rows[0]):
        for j in range(m.rows[1]):
            product(m.w, p.a + i * m.lda[0] + j * m.lda[1], m.lda[2], p.c + i * m.ldc[0] + j * m.ldc[1], m.ldc[2],
                    m.rows[2], m.n, p.x.backwards ^ (j & 1), part, parts)


cdef void run_product(const command *c, const context *x) noexcept nogil:
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


cdef struct multiply_command:
    # c [rows, n] = a [rows, k] . b [k, n] for each of `shape` matrices, by strides in floats; b is packed to `packed`,
    # once where all multiply the same one
    command head
    location a, b, c, packed, zeros
    Py_ssize_t[ROW_AXES] shape, of_a, of_b, of_c
    Py_ssize_t rows, k, n, lda, ldc, stride_k, stride_n


cdef void run_multiply(const command *head, const context *x) noexcept nogil:
    cdef const multiply_command *m = <const multiply_command *>head
    cdef const float *a = <const float *>address_of(x, m.a)
    cdef const float *b = <const float *>address_of(x, m.b)
    cdef const float *last = NULL
    cdef const float *one
    cdef float *c = <float *>address_of(x, m.c)
    cdef float *packed = <float *>address_of(x, m.packed)
    cdef matrix w
    cdef Py_ssize_t i, j, k
    w.w, w.bias = packed, <const float *>address_of(x, m.zeros)
    w.k, w.units, w.gates, w.panel, w.blocks = m.k, m.n, 1, 4, blocks_of(m.n)
    for i in range(m.shape[0]):
        for j in range(m.shape[1]):
            for k in range(m.shape[2]):
                one = b + i * m.of_b[0] + j * m.of_b[1] + k * m.of_b[2]
                if one != last:
                    pack(&w, one, m.stride_k, m.stride_n, packed)
                    last = one
                x.isa.matmul(&w, share_of(&w, 0, 1), a + i * m.of_a[0] + j * m.of_a[1] + k * m.of_a[2], m.lda,
                             c + i * m.of_c[0] + j * m.of_c[1] + k * m.of_c[2], m.ldc, m.rows, m.n)


cdef extern from "program.h" nogil:
    ctypedef struct convolution_command:
        Py_ssize_t cost
        Py_ssize_t[3] shape
    ctypedef struct convolved_command:
        command convolution


cdef struct Convolution:
    const command *c
    const command *then
    const context *x


cdef void convolution_part(void *argument, int part, int parts) noexcept nogil:
    cdef Convolution *p = <Convolution *>argument
    p.x.isa.convolution(p.c, p.then, p.x, part, parts)


cdef void convolve(const command *c, const command *then, const context *x) noexcept nogil:
    cdef const convolution_command *m = <const convolution_command *>c
    cdef int parts = ITEMS * x.threads
    cdef Convolution p
    cdef team crew
    p.c, p.then, p.x = c, then, x
    if x.threads > 1 and (m.cost >= SHARED_COST or forced):
        if m.shape[0] * m.shape[1] < 2 * parts:         # parts are no lines
            p.then = NULL
        team_open(&crew, x.threads, m.cost < BRIEF_COST)
        team_each(&crew, parts, convolution_part, &p)
        team_close(&crew)
        if p.then != then:
            x.isa.elementwise(then, x)
    else:
        convolution_part(&p, 0, 1)


cdef void run_convolution(const command *c, const context *x) noexcept nogil:
    convolve(c, NULL, x)


cdef void run_convolved(const command *c, const context *x) noexcept nogil:
    cdef const command *first = &(<const convolved_command *>c).convolution
    convolve(first, <const command *>(<const Py_ssize_t *>first + first.words), x)


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
    """Of its first element."""
    return <size_t>cnp.PyArray_DATA(view)


cdef void execute(const Py_ssize_t *words, Py_ssize_t n_words, const context *x) noexcept nogil:
    rnnfast_execute(words, n_words, x)


cdef class Segment:
    """Native steps in one call without the GIL: arrays of the types and shapes of `inputs` -> a tuple of new arrays.

    program: words, as program.h has them; arena: the bytes of all intermediate results; live: the most of them that
    are needed at one time; outputs: (shape, type) pairs; keep: what the program points to; notes: a Note for each
    command; checks: (where in the arena a command notes a value that is out of range, the error's class, what it says of
    the value, where it belongs); iterations: how many its loops may take together in a run.
    """
    def __init__(self, program, arena, live, inputs, outputs, keep, notes, checks, threads, iterations=0):
        cdef Py_ssize_t i, j, at = 0
        cdef cnp.ndarray code = np.array(program, np.intp), noted = np.array([offset for offset, *_ in checks], np.intp)
        self.arrays, self.n_words, self.n_noted = (code, noted), code.size, noted.size
        self.words, self.noted = <const Py_ssize_t *>cnp.PyArray_DATA(code), <const Py_ssize_t *>cnp.PyArray_DATA(noted)
        self.arena, self.live, self.keep, self.notes = arena, live, keep, notes
        self.checks, self.threads, self.iterations = tuple(checks), threads, iterations
        self.inputs = tuple(inputs)
        self.outputs = tuple([(shape, np.dtype(dtype)) for shape, dtype in outputs])
        self.spare = []
        if 2 + len(self.inputs) + len(self.outputs) > MAX_AREAS:
            raise LimitError(f"{len(self.inputs)} inputs and {len(self.outputs)} outputs of a native step")
        self.n_outputs = len(self.outputs)
        for i, (shape, dtype) in enumerate(self.outputs):
            self.types[i], self.axes[i], self.first_axis[i] = dtype.num, len(shape), at
            for j in range(len(shape)):
                self.shapes[at] = shape[j]
                at += 1

    def __call__(self, *args):
        return self.run(args)

    @property
    def nbytes(self):
        """Of the arena and the outputs."""
        return self.arena + sum([size_of(shape, dtype) for shape, dtype in self.outputs])

    @property
    def address(self):
        """Of the program."""
        return <size_t>self.words

    def times(self, *args, Py_ssize_t rounds=100):
        """The least nanoseconds that each command took in so many whole runs, as a list beside `notes`."""
        cdef context x
        cdef char *areas[MAX_AREAS]
        cdef int64_t iterations
        cdef Buffer memory = self.borrow()
        cdef cnp.ndarray least = np.full(len(self.notes), INT64_MAX)
        cdef int64_t *of_command = <int64_t *>cnp.PyArray_DATA(least)
        cdef Py_ssize_t i
        cdef unsigned mode
        args = tuple([np.require(value, requirements=("C", "A")) for value in args])
        results = self.prepare(&x, areas, &iterations, memory, args)
        with nogil:
            mode = active.flush_denormals()
            for i in range(rounds):
                iterations = self.iterations
                rnnfast_execute_timed(self.words, self.n_words, &x, of_command)
            active.restore_mode(mode)
        self.give_back(memory)
        return least.tolist()

    cdef tuple run(self, tuple args):
        cdef char *areas[MAX_AREAS]
        cdef context x
        cdef Py_ssize_t i
        cdef unsigned mode
        cdef int64_t iterations = self.iterations
        cdef Buffer memory
        for i in range(len(args)):
            if not cnp.PyArray_ISCARRAY_RO(args[i]):
                args = tuple([np.require(value, requirements=("C", "A")) for value in args])
                break
        memory = self.borrow()
        cdef tuple results = self.prepare(&x, areas, &iterations, memory, args)
        with nogil:
            mode = active.flush_denormals()
            rnnfast_execute(self.words, self.n_words, &x)
            active.restore_mode(mode)
        if self.checks:
            self.check(<const char *>memory.p)
        self.give_back(memory)
        return results

    cdef tuple prepare(self, context *x, char **areas, int64_t *iterations, Buffer memory, tuple args):
        """New outputs, and in x all that a run needs."""
        cdef Py_ssize_t i, n = len(args)
        cdef tuple results = PyTuple_New(self.n_outputs)
        areas[0], areas[1] = NULL, <char *>memory.p
        for i in range(n):
            areas[2 + i] = <char *>cnp.PyArray_DATA(args[i])
        for i in range(self.n_outputs):
            value = self.new_output(i)
            Py_INCREF(value)
            PyTuple_SET_ITEM(results, i, value)
            areas[2 + n + i] = <char *>cnp.PyArray_DATA(value)
        x.areas, x.isa, x.iteration, x.iterations = areas, active, 0, iterations
        x.threads = 1 if self.threads == 1 else useful_threads(self.threads)
        x.backwards = self.turn
        self.turn ^= 1
        return results

    cdef object new_output(self, Py_ssize_t i):
        return cnp.PyArray_EMPTY(self.axes[i], self.shapes + self.first_axis[i], self.types[i], 0)

    cdef bint failed(self, const char *arena) noexcept nogil:
        """Whether a run on this arena met a value that was out of range."""
        cdef Py_ssize_t i
        for i in range(self.n_noted):
            if (<const int64_t *>(arena + self.noted[i]))[0]:
                return True
        return False

    cdef int check(self, const char *arena) except -1:
        """InputError if a run on this arena met a value that was out of range."""
        cdef const int64_t *status
        cdef Py_ssize_t offset
        for offset, error, message, where in self.checks:
            status = <const int64_t *>(arena + offset)
            if status[0]:
                raise located(error(message.format(status[1])), where)
        return 0

    cdef Buffer borrow(self):
        if self.spare:
            return self.spare.pop()
        return Buffer((self.arena + 3) // 4)

    cdef void give_back(self, Buffer memory):
        if len(self.spare) < SPARE_ARENAS:
            self.spare.append(memory)
