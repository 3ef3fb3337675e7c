"""A native program run frame by frame, with states of its own."""
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_New, PyTuple_SET_ITEM
from libc.string cimport memcpy, memset

cimport numpy as cnp

import numpy as np

from rnnfast.native._arrays import pattern
from rnnfast.errors import LimitError

from rnnfast.native._kernels cimport *
from rnnfast.native._arrays cimport *
from rnnfast.native._programs cimport *

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_Empty(int, const cnp.npy_intp *, cnp.dtype, int)


cdef class StreamRunner:
    """A NativeProgram run frame by frame. Each state has two arrays, read and written in turn.

    A buffer is given by its number, which counts the program's inputs and then its outputs, without the constants and
    the arena; -1 is an input that no command reads. The caller makes sure that one thread at a time is here.

    Args:
        frames: (name, buffer, array like the value, the only value that it may have or None) of each input of a frame.
        fixed: (buffer, array) of each input that is the same for all frames.
        states: (buffer read, buffer written, initial value) of each state.
        results: (name, buffer) of each result.
    """
    cdef readonly NativeProgram program
    cdef readonly tuple names, pins, results
    cdef readonly list scalars          # of each frame input: None, or (the last int given, the array that it became)
    cdef tuple likes, result_likes, held
    cdef list state_arrays              # of each state, the pair of its arrays; `turn` is the one read next
    cdef char *base[MAX_BUFFERS]
    cdef int frame_buffers[MAX_BUFFERS]
    cdef int result_buffers[MAX_BUFFERS]
    cdef int read_buffers[MAX_BUFFERS]
    cdef int written_buffers[MAX_BUFFERS]
    cdef char *data[2][MAX_BUFFERS]
    cdef int n_buffers, n_frames, n_results, n_states
    cdef public int turn                # which array of each state is read next; to set it back undoes the last step

    def __init__(self, NativeProgram program, tuple frames, tuple fixed, tuple states, tuple results):
        cdef int i
        if max(len(frames), len(states), len(results)) > MAX_BUFFERS:
            raise LimitError(f"{len(frames)} inputs, {len(states)} states and {len(results)} outputs of a stream")
        self.program, self.turn = program, 0
        self.n_buffers = 2 + len(program.inputs) + len(program.outputs)
        self.n_frames, self.n_results, self.n_states = len(frames), len(results), len(states)
        self.base[0] = self.base[1] = NULL
        self.names = tuple([name for name, *_ in frames])
        self.likes = tuple([pattern(like) for _, _, like, _ in frames])
        self.pins = tuple([pin for *_, pin in frames])
        self.scalars = [None] * self.n_frames
        for i in range(self.n_frames):
            self.frame_buffers[i] = -1 if frames[i][1] < 0 else 2 + <int>frames[i][1]
        self.held = tuple([np.array(value, order="C") for _, value in fixed])
        for (buffer, _), value in zip(fixed, self.held):
            if buffer >= 0:
                self.base[2 + <int>buffer] = <char *>cnp.PyArray_DATA(value)
        self.results = tuple([name for name, _ in results])
        self.result_likes = tuple([np.broadcast_to(np.empty((), dtype), shape) for shape, dtype in
                                   [program.outputs[buffer - len(program.inputs)] for _, buffer in results]])
        for i in range(self.n_results):
            self.result_buffers[i] = 2 + <int>results[i][1]
        self.state_arrays = []
        for i in range(self.n_states):
            read, written, value = states[i]
            self.read_buffers[i] = -1 if read < 0 else 2 + <int>read
            self.written_buffers[i] = 2 + <int>written
            pair = np.array(value, order="C"), np.array(value, order="C")
            self.data[0][i], self.data[1][i] = <char *>cnp.PyArray_DATA(pair[0]), <char *>cnp.PyArray_DATA(pair[1])
            self.state_arrays.append(pair)

    def state(self):
        """Return copies of the states."""
        return [pair[self.turn].copy() for pair in self.state_arrays]

    def load(self, states):
        """Set the states to these arrays, which have the right types and shapes."""
        for pair, value in zip(self.state_arrays, states):
            np.copyto(pair[self.turn], value)

    def shapes(self):
        """Return (shape, dtype) of each result of one frame."""
        return [(like.shape, like.dtype) for like in self.result_likes]

    def takes(self, list values):
        """Return whether one frame's values are those that the program is for; types and shapes were checked."""
        return all([pin is None or same_values(value, pin) for value, pin in zip(values, self.pins)])

    def step(self, feed, out):
        """Take one frame and return its results; None, and nothing is done, if a value needs conversion.

        Args:
            feed: A dict of arrays by name.
            out: None, or the array (a dict of arrays by name) that the results are written to.
        """
        cdef char *buffers[MAX_BUFFERS]
        cdef tuple used, results
        cdef cnp.ndarray array
        cdef int i
        if type(feed) is not dict or len(<dict>feed) != self.n_frames:
            return None
        memcpy(buffers, self.base, self.n_buffers * sizeof(char *))
        used = PyTuple_New(self.n_frames)
        for i in range(self.n_frames):
            value = (<dict>feed).get(<object>PyTuple_GET_ITEM(self.names, i))
            if type(value) is int:
                value = self.converted(value, i)
            if type(value) is not cnp.ndarray:
                return None
            array = value
            pin = <object>PyTuple_GET_ITEM(self.pins, i)
            if not cnp.PyArray_ISCARRAY_RO(array) or not same_type(array, <object>PyTuple_GET_ITEM(self.likes, i)):
                return None
            if pin is not None and not same_values(array, pin):
                return None
            Py_INCREF(array)
            PyTuple_SET_ITEM(used, i, array)
            if self.frame_buffers[i] >= 0:
                buffers[self.frame_buffers[i]] = <char *>cnp.PyArray_DATA(array)
        results = self.fresh() if out is None else self.given(out, used)
        if results is None:
            return None
        for i in range(self.n_results):
            buffers[self.result_buffers[i]] = <char *>cnp.PyArray_DATA(<cnp.ndarray>PyTuple_GET_ITEM(results, i))
        self.advance(buffers, NULL, 1)
        return results

    cdef object converted(self, value, int i):
        """Return the array that this int became when it was last given, or None."""
        cdef tuple known = self.scalars[i]
        return known[1] if known is not None and known[0] == value else None

    cdef tuple fresh(self):
        cdef tuple results = PyTuple_New(self.n_results)
        cdef cnp.ndarray like
        cdef cnp.dtype dtype
        cdef int i
        for i in range(self.n_results):
            like = <cnp.ndarray>PyTuple_GET_ITEM(self.result_likes, i)
            dtype = like.dtype
            Py_INCREF(dtype)        # PyArray_Empty takes it over
            array = PyArray_Empty(cnp.PyArray_NDIM(like), cnp.PyArray_DIMS(like), dtype, 0)
            Py_INCREF(array)
            PyTuple_SET_ITEM(results, i, array)
        return results

    cdef tuple given(self, out, tuple used):
        """Return the caller's arrays as results; None unless they fit and share no memory with others of the call."""
        cdef tuple results = PyTuple_New(self.n_results)
        cdef cnp.ndarray array
        cdef int i, j
        if type(out) is dict and len(<dict>out) != self.n_results or type(out) is not dict and self.n_results != 1:
            return None
        for i in range(self.n_results):
            value = out
            if type(out) is dict:
                value = (<dict>out).get(<object>PyTuple_GET_ITEM(self.results, i))
            if type(value) is not cnp.ndarray or not cnp.PyArray_ISCARRAY(<cnp.ndarray>value):
                return None
            array = value
            if not same_type(array, <object>PyTuple_GET_ITEM(self.result_likes, i)):
                return None
            for j in range(i):
                if overlap(array, <cnp.ndarray>PyTuple_GET_ITEM(results, j)):
                    return None
            for j in range(self.n_frames):
                if overlap(array, <cnp.ndarray>PyTuple_GET_ITEM(used, j)):
                    return None
            Py_INCREF(array)
            PyTuple_SET_ITEM(results, i, array)
        return results

    def run(self, list values, list results, Py_ssize_t n):
        """Take n frames in one loop. All arrays were checked.

        Args:
            values: Arrays of one frame, the same for all, or of n frames, each of them contiguous.
            results: Arrays of one frame, for n = 1, or of n frames.
        """
        cdef char *buffers[MAX_BUFFERS]
        cdef Py_ssize_t strides[MAX_BUFFERS]
        cdef cnp.ndarray array
        cdef int i
        memset(strides, 0, sizeof(strides))
        memcpy(buffers, self.base, self.n_buffers * sizeof(char *))
        for i in range(self.n_frames):
            array = values[i]
            if self.frame_buffers[i] >= 0:
                buffers[self.frame_buffers[i]] = <char *>cnp.PyArray_DATA(array)
                if cnp.PyArray_NDIM(array) > cnp.PyArray_NDIM(<cnp.ndarray>self.likes[i]):
                    strides[self.frame_buffers[i]] = cnp.PyArray_STRIDE(array, 0)
        for i in range(self.n_results):
            array = results[i]
            buffers[self.result_buffers[i]] = <char *>cnp.PyArray_DATA(array)
            if cnp.PyArray_NDIM(array) > cnp.PyArray_NDIM(<cnp.ndarray>self.result_likes[i]):
                strides[self.result_buffers[i]] = cnp.PyArray_STRIDE(array, 0)
        self.advance(buffers, strides, n)

    cdef int advance(self, char **buffers, const Py_ssize_t *strides, Py_ssize_t n) except -1:
        cdef const Py_ssize_t *words = self.program.words
        cdef Py_ssize_t n_words = self.program.n_words, _frame
        cdef context x
        cdef loop_allowance left
        cdef interrupt call
        cdef unsigned mode
        cdef int i, turn = self.turn
        cdef bint failed = False, checked = self.program.n_noted > 0
        before = self.state() if n > 1 else None
        x.threads = useful_threads(self.program.threads)
        cdef block *memory = self.program.arenas.borrow(self.program.arena)
        buffers[1] = memory_of(memory)
        begin(&call, self.program.seconds)
        x.buffers, x.isa, x.iteration, x.left, x.watch = buffers, active, 0, &left, &call.watch
        with nogil:
            mode = active.flush_denormals()
            for _frame in range(n):
                for i in range(self.n_states):
                    if self.read_buffers[i] >= 0:
                        buffers[self.read_buffers[i]] = self.data[self.turn][i]
                    buffers[self.written_buffers[i]] = self.data[1 - self.turn][i]
                x.backwards = self.turn
                left = self.program.allowed
                execute(words, n_words, &x)
                if stopped(&call) or checked and self.program.failed(buffers[1]):
                    failed = True
                    break
                self.turn = 1 - self.turn
                if strides != NULL:
                    for i in range(2, self.n_buffers):
                        buffers[i] += strides[i]
            active.restore_mode(mode)
        try:
            if failed:
                try:
                    finish(&call)
                    self.program.check(buffers[1])
                finally:
                    self.turn = turn
                    if before is not None:
                        self.load(before)
        finally:
            self.program.arenas.give_back(memory)
        return 0


cdef bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Return whether two contiguous arrays share memory."""
    cdef char *p = <char *>cnp.PyArray_DATA(a)
    cdef char *q = <char *>cnp.PyArray_DATA(b)
    return p < q + cnp.PyArray_NBYTES(b) and q < p + cnp.PyArray_NBYTES(a)
