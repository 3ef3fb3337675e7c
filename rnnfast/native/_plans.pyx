"""Plans, and which of them takes a call's inputs: all that a call does besides its steps."""
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM

cimport numpy as cnp

import numpy as np

from rnnfast.errors import with_location
from rnnfast.native._arrays import pattern
from rnnfast.native._engine import recurrent

from rnnfast.native._arrays cimport nbytes_of, same_type, same_values
from rnnfast.native._programs cimport NativeProgram

cnp.import_array()


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

    args: inputs like those that it takes. initial_values: the values before a run (what is known, None for the rest; inputs
    come first, then the call's Budget). steps: (callable, the slots of its inputs, the slots of its outputs, those of
    them that may be large, the slots of values that no later step needs, where it stands in the file). outputs: their
    slots. budget: makes a call's Budget, None if no step needs one. folded: the Folded of what the initial_values keeps.
    pinned: the inputs whose values it takes only as they are in `args`. unmetered_steps: the steps as they were before any of them
    got a meter. results: arrays like the outputs, if their types and shapes follow from those of the inputs, else None.
    """
    cdef tuple inputs
    cdef readonly tuple pinned
    cdef readonly list initial_values
    cdef list rest
    cdef readonly tuple steps, outputs, unmetered_steps, results
    cdef object budget, folded
    cdef readonly bint native, fresh, compiled
    cdef NativeProgram whole          # the only step, of arguments in their order, or None
    cdef tuple order            # of its results that are the outputs

    def __init__(self, args, list initial_values, tuple steps, tuple outputs, budget, folded, pinned, unmetered_steps, results):
        self.inputs, self.unmetered_steps, self.results = tuple(map(pattern, args)), unmetered_steps, results
        self.pinned = tuple([(i, np.array(args[i])) for i in pinned])
        self.rest = initial_values[len(args):]
        self.initial_values, self.steps, self.outputs, self.budget, self.folded = initial_values, steps, outputs, budget, folded
        native = [step for step in steps if type(step[0]) in (RecurrentStep, NativeProgram)]
        self.compiled = any([type(step[0]) is NativeProgram for step in steps])
        self.whole = None
        if len(steps) == 1 and type(steps[0][0]) is NativeProgram and budget is None:
            if max(steps[0][1], default=0) < len(args) and set(outputs) <= set(steps[0][2]):
                self.whole = steps[0][0]
                self.order = tuple([steps[0][2].index(slot) for slot in outputs])
        made = {slot for _, _, slots, *_ in native for slot in slots}
        self.native = len(native) == len(steps)
        self.fresh = made.issuperset(outputs) and len(set(outputs)) == len(outputs)

    @property
    def nbytes(self):
        """Of the results of all steps, intermediate ones of native steps included; None where that is not known."""
        total = 0
        for step in self.unmetered_steps:
            if type(step.run) is NativeProgram:
                total += step.run.nbytes
            elif step.results:
                total += sum([nbytes_of(v.shape, v.dtype) for v in step.results if v is not None])
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
                        values[slot(outputs, i)] = (<tuple>result)[i]
                else:
                    values[slot(outputs, 0)] = result
                if budget is not None:
                    for i in range(len(large)):
                        budget.count(values[slot(large, i)])
                for i in range(len(released)):
                    values[slot(released, i)] = None
        except Exception as e:
            raise with_location(e, where) from e
        return [values[slot(self.outputs, i)] for i in range(len(self.outputs))]

    cdef list run(self, list args):
        """The outputs as arrays of their own."""
        cdef list outputs
        cdef tuple results
        cdef Py_ssize_t i
        if self.whole is not None and self.fresh:
            try:
                results = self.whole.run(gathered(args, (<tuple>self.steps[0])[1]))
            except Exception as e:
                raise with_location(e, (<tuple>self.steps[0])[5]) from e
            return [results[slot(self.order, i)] for i in range(len(self.order))]
        if self.native:
            outputs = self.shared(args)
        else:
            with np.errstate(all="ignore"):
                outputs = self.shared(args)
        return outputs if self.fresh else separate(outputs, args)


cdef inline Py_ssize_t slot(tuple slots, Py_ssize_t i) except -1:
    return slots[i]


cdef tuple gathered(list values, tuple slots):
    cdef tuple args = PyTuple_New(len(slots))
    cdef Py_ssize_t i
    for i in range(len(slots)):
        value = values[slot(slots, i)]
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
cdef class RecurrentStep:
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
