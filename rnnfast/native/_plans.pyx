"""Plans, and the choice of the plan that takes the inputs of a call."""
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM

cimport cython
cimport numpy as cnp

import numpy as np

from rnnfast.errors import Error, with_location
from rnnfast.native._arrays import pattern
from rnnfast.native._engine import recurrent
from rnnfast.native._interrupts import within

from rnnfast.native._arrays cimport nbytes_of, same_type, same_values
from rnnfast.native._interrupts cimport check
from rnnfast.native._kernels cimport loop_allowance
from rnnfast.native._programs cimport NativeProgram

cnp.import_array()


cdef bint matches(value, like) except -1:
    """Return whether a value has the types and shapes of a pattern."""
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
    """Return outputs as writeable arrays that share no memory with arguments, constants or each other.

    Views, read-only arrays (such as constants), arguments and repeated outputs are copied.
    """
    taken = {id(v) for a in args for v in (a if type(a) is list else (a,))}
    return [own(value, taken) for value in outputs]


cdef object own(value, set taken):
    """Return the value, copied unless it owns its memory and is not in use. `taken` has the ids of arrays in use."""
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
cdef enum:
    PLAN_BYTES = 10000          # of a plan besides its values and words, as measured by tracemalloc
    SLOT_BYTES = 400            # of each value of a plan


cdef class Plan:
    """Steps on a list of values, for inputs of one set of types and shapes. Immutable; threads may run it at once.

    Args:
        args: Inputs of the types and shapes that it takes.
        initial_values: The values before a run: the inputs, the call's Budget, then the others; None if not yet known.
        steps: For each step (callable, slots of its inputs, slots of its outputs, the output slots that may hold large
            values, slots of values that no later step needs, where it stands in the file).
        outputs: The slots of the outputs.
        budget: Makes the Budget of a call from its arguments; None if no step needs one.
        folded: The FoldingBudget of the constants in initial_values, which it gives back when the plan is deleted.
        pinned: Which inputs it takes only with the values that they have in `args`.
        unmetered_steps: The steps before any of them got a meter.
        results: Arrays like the outputs if their types and shapes follow from those of the inputs, otherwise None.
        work: The work of a run, without that of steps that take the Budget of the call.
        seconds: After how many seconds a run is stopped; None for never.
    """
    cdef tuple inputs
    cdef readonly tuple pinned
    cdef readonly list initial_values
    cdef list rest
    cdef readonly tuple steps, outputs, unmetered_steps, results
    cdef object budget, folded
    cdef readonly object work
    cdef readonly bint native, fresh, compiled
    cdef NativeProgram whole    # the only step, if that is a native program on arguments; otherwise None
    cdef tuple order            # which of its results are the outputs
    cdef object seconds
    cdef Py_ssize_t own_bytes

    def __init__(self, args, list initial_values, tuple steps, tuple outputs, budget, folded, pinned, unmetered_steps,
                 results, work, seconds=None):
        self.work = work
        self.inputs, self.unmetered_steps, self.results = tuple(map(pattern, args)), unmetered_steps, results
        self.seconds = seconds
        self.pinned = tuple([(i, np.array(args[i])) for i in pinned])
        self.rest = initial_values[len(args):]
        self.initial_values, self.steps, self.outputs = initial_values, steps, outputs
        self.budget, self.folded = budget, folded
        native = [step for step in steps if type(step[0]) in (RecurrentStep, NativeProgram)]
        self.compiled = any([type(step[0]) is NativeProgram for step in steps])
        self.whole = None
        if len(steps) == 1 and type(steps[0][0]) is NativeProgram and budget is None:
            if max(steps[0][1], default=0) < len(args) and set(outputs) <= set(steps[0][2]):
                self.whole = steps[0][0]
                self.order = tuple([steps[0][2].index(slot) for slot in outputs])
        self.own_bytes = PLAN_BYTES + SLOT_BYTES * len(initial_values) + (folded.nbytes if folded is not None else 0)
        for step in steps:
            if type(step[0]) is NativeProgram:
                self.own_bytes += (<NativeProgram>step[0]).n_words * sizeof(Py_ssize_t)
        made = {slot for _, _, slots, *_ in native for slot in slots}
        self.native = len(native) == len(steps)
        self.fresh = made.issuperset(outputs) and len(set(outputs)) == len(outputs)

    @property
    def cost(self):
        """About how many bytes the plan takes, without weights and arenas; Plans.most_bytes bounds the sum of these."""
        return self.own_bytes

    @property
    def nbytes(self):
        """The bytes of all steps' results, with the arenas of native programs; None if that is not known."""
        total = 0
        for step in self.unmetered_steps:
            if type(step.run) is NativeProgram:
                total += step.run.nbytes
            elif step.results:
                total += sum([nbytes_of(v.shape, v.dtype) for v in step.results if v is not None])
            else:
                return None
        return total

    def held(self):
        """Return the objects that hold its memory besides arenas: arrays and packed weights."""
        objects = [value for value in self.initial_values if type(value) is cnp.ndarray]
        for step in self.unmetered_steps:
            if type(step.run) is NativeProgram:
                objects += (<NativeProgram>step.run).held()
        return objects

    cdef bint fits(self, list args) except -1:
        """Return whether the arguments have the types and shapes that it takes."""
        cdef Py_ssize_t i
        for i in range(len(args)):
            if not matches(args[i], self.inputs[i]):
                return False
        return True

    cdef bint takes(self, list args) except -1:
        """Return whether it takes the arguments: fitting types and shapes, and the values of pinned inputs."""
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
        """Run the steps; outputs may alias arguments and each other."""
        cdef list values = args + self.rest
        cdef tuple step, inputs, outputs, large, released
        cdef Py_ssize_t i
        if budget is None and self.budget is not None:
            budget = self.budget(args)
        values[len(args)] = budget
        run, where = None, ""
        try:
            for step in self.steps:
                run, inputs, outputs, large, released, where = step
                check()
                if budget is not None and large and type(run) is NativeProgram:
                    budget.make_room((<NativeProgram>run).nbytes - (<NativeProgram>run).arena)
                if budget is not None and type(run) is NativeProgram and (<NativeProgram>run).loops:
                    result = counted(<NativeProgram>run, gathered(values, inputs), budget)
                else:
                    result = run(*gathered(values, inputs))
                if type(result) is tuple:
                    for i in range(min(len(outputs), len(<tuple>result))):
                        values[slot(outputs, i)] = (<tuple>result)[i]
                else:
                    values[slot(outputs, 0)] = result
                if budget is not None:
                    for i in range(len(large)):
                        budget.count(values[slot(large, i)])
                for i in range(len(released)):
                    values[slot(released, i)] = None
        except Exception as e:
            if type(run) in (NativeProgram, RecurrentStep) and not isinstance(e, (Error, MemoryError)):
                raise           # by the handler of a signal
            raise with_location(e, where) from e
        return [values[slot(self.outputs, i)] for i in range(len(self.outputs))]

    cdef list run(self, list args):
        """Run the steps. The outputs are writeable arrays that share no memory."""
        cdef list outputs
        cdef tuple results
        cdef Py_ssize_t i
        if self.whole is not None and self.fresh:
            try:
                results = self.whole.run(gathered(args, (<tuple>self.steps[0])[1]))
            except (Error, MemoryError) as e:       # others come from the handlers of signals
                raise with_location(e, (<tuple>self.steps[0])[5]) from e
            return [results[slot(self.order, i)] for i in range(len(self.order))]
        if self.seconds is not None:
            outputs = within(self.seconds, None, self.unwarned, args)
        else:
            outputs = self.unwarned(args)
        return outputs if self.fresh else separate(outputs, args)

    cpdef list unwarned(self, list args):
        """Run the steps as `shared` does, without NumPy's warnings."""
        if self.native:
            return self.shared(args)
        with np.errstate(all="ignore"):
            return self.shared(args)


cdef tuple counted(NativeProgram program, tuple args, budget):
    """Run a program with loops as a part of the call whose Budget is given."""
    cdef loop_allowance left
    iterations, work = budget.loops_left()
    left.iterations, left.work = iterations, work
    try:
        return program.run_within(args, &left)
    finally:
        budget.count_loops(iterations - left.iterations, work - left.work)


cdef inline Py_ssize_t slot(tuple slots, Py_ssize_t i) except -1:
    """Return slots[i] as a C integer."""
    return slots[i]


cdef tuple gathered(list values, tuple slots):
    """Return the values in these slots."""
    cdef tuple args = PyTuple_New(len(slots))
    cdef Py_ssize_t i
    for i in range(len(slots)):
        value = values[slot(slots, i)]
        Py_INCREF(value)
        PyTuple_SET_ITEM(args, i, value)
    return args


cdef tuple shapes_of(list args):
    """Return what plans are found by: the shapes of the arguments, hashable."""
    cdef tuple shapes = PyTuple_New(len(args))
    cdef Py_ssize_t i
    for i in range(len(args)):
        value = args[i]
        if type(value) is list:
            shape = shapes_of(value)
        else:
            shape = None if value is None else np.shape(value) if type(value) is not cnp.ndarray else value.shape
        Py_INCREF(shape)
        PyTuple_SET_ITEM(shapes, i, shape)
    return shapes


cdef class Plans:
    """The plans of a graph, of which those least recently used are dropped.

    Args:
        names: The names of the inputs, in the order of arguments.
        most: How many plans are kept at most; None for any number.
        most_bytes: How many bytes they may take together; one plan is kept whatever it takes.
    """
    cdef readonly tuple names
    cdef readonly object most
    cdef readonly Py_ssize_t most_bytes, count, nbytes
    cdef dict by_shapes         # the shapes of arguments -> a tuple of plans; those used last are at the end
    cdef Plan last              # the plan that was used last

    def __init__(self, names, most, Py_ssize_t most_bytes):
        self.names, self.most, self.most_bytes = tuple(names), most, most_bytes
        self.by_shapes, self.last, self.count, self.nbytes = {}, None, 0, 0

    @property
    def kept(self):
        """A tuple of all plans, the least recently used first."""
        with cython.critical_section(self):
            return tuple([plan for plans in self.by_shapes.values() for plan in plans])

    cpdef Plan find(self, list args):
        """Return the plan that takes these arguments, or None."""
        cdef Plan plan
        cdef tuple shapes, plans
        with cython.critical_section(self):
            plan = self.last
            if plan is not None and plan.takes(args):
                return plan
            shapes = shapes_of(args)
            plans = self.by_shapes.get(shapes)
            if plans is None:
                return None
            for plan in plans:
                if plan.takes(args):
                    del self.by_shapes[shapes]
                    self.by_shapes[shapes] = plans
                    self.last = plan
                    return plan
        return None

    def specialised(self, list args):
        """Return how many plans there are for these types and shapes that also depend on values of inputs."""
        cdef Plan plan
        with cython.critical_section(self):
            return len([plan for plan in self.by_shapes.get(shapes_of(args), ()) if plan.pinned and plan.fits(args)])

    def add(self, Plan plan, list args):
        """Add the plan for these arguments; it replaces plans that take them too."""
        cdef Plan other
        cdef tuple shapes = shapes_of(args), before
        cdef list dropped = []          # They are freed outside of the section, as that may call finalizers.
        with cython.critical_section(self):
            before = self.by_shapes.pop(shapes, ())
            others = tuple([other for other in before if not other.takes(args)])
            dropped.append(before)
            self.by_shapes[shapes] = (plan, *others)
            self.last = plan
            self.count += 1 + len(others) - len(before)
            self.nbytes += plan.cost + sum([other.cost for other in others]) - sum([other.cost for other in before])
            most = self.count if self.most is None else self.most
            while self.count > 1 and (self.nbytes > self.most_bytes or self.count > most):
                shapes = next(iter(self.by_shapes))
                before = self.by_shapes.pop(shapes)
                dropped.append(before)
                other = before[len(before) - 1]
                self.count, self.nbytes = self.count - 1, self.nbytes - other.cost
                if len(before) > 1:
                    self.by_shapes = {shapes: before[:len(before) - 1], **self.by_shapes}

    def run(self, feed):
        """Return the outputs as arrays of their own; None unless a plan takes `feed`, a dict of arrays of numbers."""
        cdef list args
        cdef Plan plan
        cdef Py_ssize_t i
        if type(feed) is not dict or len(<dict>feed) != len(self.names):
            return None
        args = [None] * len(self.names)
        for i in range(len(self.names)):
            value = (<dict>feed).get(self.names[i])
            if type(value) is not cnp.ndarray or cnp.PyArray_TYPE(value) == cnp.NPY_OBJECT:
                return None             # texts may hold anything, so they are looked at for each call
            args[i] = value
        plan = self.find(args)
        return None if plan is None else plan.run(args)


# ---------------------------------------------------------------------------------------------- steps
cdef class RecurrentStep:
    """A recurrent node with layout 0 and packed weights, for inputs of checked types and shapes: returns Y, Y_h[, Y_c].

    `cells` and `reverse` are those of the engine. With `absent_h` or `absent_c` that initial state is ignored.
    check_lengths(sequence_lens, T, rows) raises for a length that is out of range.
    """
    cdef tuple cells, reverse
    cdef cnp.npy_intp[4] of_y
    cdef readonly tuple shape   # the shape of Y
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
