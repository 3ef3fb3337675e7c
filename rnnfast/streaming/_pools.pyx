"""Many streams: their ids, their states in packed arrays, and steps of some of them by plans of one native step."""
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

cimport numpy as cnp

import math

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError

from rnnfast.native._kernels cimport *
from rnnfast.native._arrays cimport *
from rnnfast.native._programs cimport *

cnp.import_array()


cdef class Slots:
    """The open streams of a pool. The id of a stream is its slot and, each time that the slot is taken again,
    `capacity` more. The caller sees to it that one thread at a time is here."""
    cdef readonly Py_ssize_t capacity, count
    cdef Py_ssize_t stamp
    cdef str label
    cdef Py_ssize_t[::1] ids            # of the stream that is in a slot, or of the next one
    cdef Py_ssize_t[::1] free           # slots: the first capacity - count are free
    cdef Py_ssize_t[::1] stamps         # the last lookup that had it
    cdef unsigned char[::1] taken

    def __init__(self, Py_ssize_t capacity, label):
        self.capacity, self.count, self.stamp, self.label = capacity, 0, 0, label
        self.ids = np.arange(capacity)
        self.free = np.arange(capacity - 1, -1, -1)
        self.stamps, self.taken = np.zeros(capacity, np.intp), np.zeros(capacity, np.uint8)

    def open(self):
        """-> the id of a new stream, or None where all slots are taken."""
        if self.count == self.capacity:
            return None
        self.count += 1
        cdef Py_ssize_t slot = self.free[self.capacity - self.count]
        self.taken[slot] = True
        return self.ids[slot]

    def close(self, Py_ssize_t slot):
        self.taken[slot] = False
        self.ids[slot] += self.capacity
        self.free[self.capacity - self.count] = slot
        self.count -= 1

    def opened(self):
        """The ids of the open streams."""
        return np.asarray(self.ids)[np.asarray(self.taken, bool)]

    def find(self, ids):
        """The slots of these streams [n] intp; InputError unless they are open and different."""
        cdef cnp.ndarray array
        try:
            array = np.asarray(ids)
        except ValueError as e:
            raise InputTypeError(f"{self.label}: stream ids are no array: {e}") from e
        if array.ndim != 1 or array.dtype.kind not in "iu" and array.size:
            raise InputTypeError(f"{self.label}: stream ids are {array.dtype} of shape {list(np.shape(array))}, "
                                 "expected integers [n]")
        array = array.astype(np.intp)
        cdef cnp.ndarray found = np.empty(array.size, np.intp)
        cdef Py_ssize_t *id_of = <Py_ssize_t *>cnp.PyArray_DATA(array)
        cdef Py_ssize_t *slots = <Py_ssize_t *>cnp.PyArray_DATA(found)
        cdef Py_ssize_t i, slot
        self.stamp += 1
        for i in range(array.size):
            slot = id_of[i] % self.capacity if id_of[i] >= 0 else 0
            if self.ids[slot] != id_of[i] or not self.taken[slot]:
                closed = 0 <= id_of[i] < self.ids[slot]
                raise InputError(f"{self.label}: stream {id_of[i]} {'is closed' if closed else 'was never opened'}")
            if self.stamps[slot] == self.stamp:
                raise InputError(f"{self.label}: stream {id_of[i]} is given twice")
            self.stamps[slot] = self.stamp
            slots[i] = slot
        return found


cdef struct BatchBinding:
    # A stream's value is `outer` pieces of `inner` bytes; in a batch of n, row i has its piece o at (o n + i) inner
    int buffer                    # of the program; -1: it has none
    Py_ssize_t outer, inner
    Py_ssize_t offset           # in a workspace, of the batch


cdef struct BatchLayout:
    const Py_ssize_t *words
    const Py_ssize_t *noted
    Py_ssize_t n_words, n_noted, size, nbytes
    int64_t iterations
    int n_buffers
    char *base[MAX_BUFFERS]
    BatchBinding frames[MAX_BUFFERS]
    BatchBinding reads[MAX_BUFFERS]
    BatchBinding writes[MAX_BUFFERS]
    BatchBinding results[MAX_BUFFERS]


cdef struct Chunk:
    const BatchLayout *plan
    Py_ssize_t first, count     # of the streams of a step; rows from `count` to the size of the plan repeat the last


cdef struct PoolStep:
    const Py_ssize_t *slots
    const unsigned char *turn
    int n_states, n_frames, n_results
    Py_ssize_t capacity
    char **states
    const char *frames[MAX_BUFFERS]
    char *results[MAX_BUFFERS]
    Py_ssize_t frame_strides[MAX_BUFFERS]
    Py_ssize_t result_strides[MAX_BUFFERS]
    Chunk *chunks
    Py_ssize_t n_chunks, lane_bytes
    Py_ssize_t next             # chunk that is to be taken
    char *lanes                 # a workspace for each thread
    Py_ssize_t failed           # 1 + a chunk that met a value that is out of range + chunks * its lane, 0 for none
    int backwards


cdef inline void gather_row(const BatchBinding *p, char *batch, Py_ssize_t size, Py_ssize_t row,
                            const char *value) noexcept nogil:
    cdef Py_ssize_t o
    for o in range(p.outer):
        memcpy(batch + (o * size + row) * p.inner, value + o * p.inner, p.inner)


cdef inline void scatter_row(const BatchBinding *p, const char *batch, Py_ssize_t size, Py_ssize_t row,
                             char *value) noexcept nogil:
    cdef Py_ssize_t o
    for o in range(p.outer):
        memcpy(value + o * p.inner, batch + (o * size + row) * p.inner, p.inner)


cdef inline bint direct(const BatchBinding *p, Py_ssize_t stride, const Chunk *c) noexcept nogil:
    """Whether the caller's rows are the batch as they stand."""
    return p.outer == 1 and stride == p.inner and c.count == c.plan.size


cdef inline char *state_of(const PoolStep *s, int i, const BatchBinding *p, Py_ssize_t slot, int turn) noexcept nogil:
    return s.states[i] + (turn * s.capacity + slot) * p.outer * p.inner


cdef bint adjacent(const PoolStep *s, const Chunk *c) noexcept nogil:
    """Whether the streams of a chunk lie behind each other in the states, all of them to be read at the same turn."""
    cdef const Py_ssize_t *slots = s.slots + c.first
    cdef Py_ssize_t row
    if c.count < c.plan.size:
        return False
    for row in range(1, c.count):
        if slots[row] != slots[0] + row or s.turn[slots[row]] != s.turn[slots[0]]:
            return False
    return True


cdef bint run_chunk(const PoolStep *s, const Chunk *c, char *lane) noexcept nogil:
    """False if it met a value that is out of range."""
    cdef const BatchLayout *plan = c.plan
    cdef const BatchBinding *p
    cdef char *buffers[MAX_BUFFERS]
    cdef context x
    cdef int64_t iterations = plan.iterations
    cdef Py_ssize_t row, slot, n = plan.size
    cdef int i
    cdef bint whole = adjacent(s, c)        # LSTM H128, 1,024 streams: 0.94 of the time
    memcpy(buffers, plan.base, plan.n_buffers * sizeof(char *))
    buffers[1] = lane
    for i in range(s.n_frames):
        p = &plan.frames[i]
        if p.buffer < 0:
            continue
        if direct(p, s.frame_strides[i], c):
            buffers[p.buffer] = <char *>s.frames[i] + c.first * s.frame_strides[i]
            continue
        buffers[p.buffer] = lane + p.offset
        for row in range(n):
            gather_row(p, buffers[p.buffer], n, row, s.frames[i] + (c.first + min(row, c.count - 1)) * s.frame_strides[i])
    for i in range(s.n_states):
        p = &plan.reads[i]
        slot = s.slots[c.first]
        if p.buffer >= 0 and whole and p.outer == 1:
            buffers[p.buffer] = state_of(s, i, p, slot, s.turn[slot])
        elif p.buffer >= 0:
            buffers[p.buffer] = lane + p.offset
            for row in range(n):
                slot = s.slots[c.first + min(row, c.count - 1)]
                gather_row(p, buffers[p.buffer], n, row, state_of(s, i, p, slot, s.turn[slot]))
        p = &plan.writes[i]
        slot = s.slots[c.first]
        if p.buffer >= 0:
            buffers[p.buffer] = (state_of(s, i, p, slot, 1 - s.turn[slot]) if whole and p.outer == 1
                             else lane + p.offset)
    for i in range(s.n_results):
        p = &plan.results[i]
        buffers[p.buffer] = lane + p.offset
        if direct(p, s.result_strides[i], c):
            buffers[p.buffer] = s.results[i] + c.first * s.result_strides[i]
    x.buffers, x.isa, x.iteration, x.iterations, x.threads, x.backwards = buffers, active, 0, &iterations, 1, s.backwards
    execute(plan.words, plan.n_words, &x)
    for i in range(plan.n_noted):
        if (<const int64_t *>(lane + plan.noted[i]))[0]:
            return False
    for i in range(s.n_states):
        p = &plan.writes[i]
        if p.buffer >= 0 and not (whole and p.outer == 1):
            for row in range(c.count):
                slot = s.slots[c.first + row]
                scatter_row(p, buffers[p.buffer], n, row, state_of(s, i, p, slot, 1 - s.turn[slot]))
    for i in range(s.n_results):
        p = &plan.results[i]
        if not direct(p, s.result_strides[i], c):
            for row in range(c.count):
                scatter_row(p, buffers[p.buffer], n, row, s.results[i] + (c.first + row) * s.result_strides[i])
    return True


cdef extern from *:
    """
    #define TAKE(p) __atomic_fetch_add(p, 1, __ATOMIC_RELAXED)
    """
    Py_ssize_t take "TAKE"(Py_ssize_t *) noexcept nogil


cdef void run_lane(void *argument, int item, int items) noexcept nogil:
    """Chunks that no other lane has taken, one after the other."""
    cdef PoolStep *s = <PoolStep *>argument
    cdef Py_ssize_t c = take(&s.next)
    while c < s.n_chunks:
        if not run_chunk(s, &s.chunks[c], s.lanes + item * s.lane_bytes):
            s.failed = 1 + c + item * s.n_chunks
            return
        c = take(&s.next)


cdef class BatchedProgram:
    """A NativeProgram for `size` streams. frames, results: (buffer, axis of the streams) of each input that is new at each step
    and of each result, -1 for the whole array of one stream; states: (buffer read, buffer written, axis); fixed: (buffer,
    array) of those that all streams share. Areas are places among the program's inputs, then outputs; -1 for none."""
    cdef BatchLayout plan
    cdef NativeProgram program
    cdef tuple held

    def __init__(self, NativeProgram program, Py_ssize_t size, frames, states, results, fixed):
        cdef BatchLayout *p = &self.plan
        cdef int i
        if max(len(frames), len(states), len(results)) > MAX_BUFFERS:
            raise LimitError(f"{len(frames)} inputs, {len(states)} states and {len(results)} outputs of a stream")
        self.program = program
        p.words, p.n_words, p.noted, p.n_noted = program.words, program.n_words, program.noted, program.n_noted
        p.iterations, p.size = program.iterations, size
        p.n_buffers = 2 + len(program.inputs) + len(program.outputs)
        p.nbytes = lines(program.arena)
        p.base[0] = NULL
        for i, (buffer, axis) in enumerate(frames):
            self.bind(&p.frames[i], buffer, axis)
        for i, (read, written, axis) in enumerate(states):
            self.bind(&p.reads[i], read, axis)
            self.bind(&p.writes[i], written, axis)
        for i, (buffer, axis) in enumerate(results):
            self.bind(&p.results[i], buffer, axis)
        self.held = tuple([np.array(value, order="C") for _, value in fixed])
        for (buffer, _), value in zip(fixed, self.held):
            if buffer >= 0:
                p.base[2 + <int>buffer] = <char *>cnp.PyArray_DATA(value)

    cdef int bind(self, BatchBinding *p, int buffer, int axis) except -1:
        p.buffer = -1
        if buffer >= 0:
            inputs = len(self.program.inputs)
            shape, dtype = (self.program.inputs[buffer] if buffer < inputs else self.program.outputs[buffer - inputs])
            p.buffer, p.offset = 2 + buffer, self.plan.nbytes
            p.outer = math.prod(shape[:axis]) if axis >= 0 else 1
            p.inner = math.prod(shape[axis + 1:] if axis >= 0 else shape) * dtype.itemsize
            self.plan.nbytes += lines(p.outer * p.inner * self.plan.size)
        return 0

    @property
    def nbytes(self):
        """Of the workspace of one thread."""
        return self.plan.nbytes


cdef Py_ssize_t lines(Py_ssize_t nbytes):
    """In whole cache lines, with one to be read behind them."""
    return (nbytes + 127) // 64 * 64


cdef class StateTable:
    """The states of `capacity` streams, of these (shape, type)s, and steps of some of them at a time. There are two of
    each state, read and written in turn: a step changes nothing before `commit`. One thread at a time."""
    cdef readonly Py_ssize_t capacity
    cdef readonly list states           # [2, capacity, ..]
    cdef cnp.ndarray turn               # of each stream: which it reads next
    cdef char *data[MAX_BUFFERS]
    cdef AlignedFloats memory
    cdef int backwards

    def __init__(self, Py_ssize_t capacity, forms):
        cdef int i
        if len(forms) > MAX_BUFFERS:
            raise LimitError(f"{len(forms)} states of a stream")
        self.capacity = capacity
        try:
            self.states = [np.zeros((2, capacity, *shape), dtype) for shape, dtype in forms]
        except (MemoryError, ValueError) as e:
            raise LimitError(f"no memory for the states of {capacity} streams: {e}") from e
        self.turn = np.zeros(capacity, np.uint8)
        for i in range(len(self.states)):
            self.data[i] = <char *>cnp.PyArray_DATA(self.states[i])

    def get(self, slots):
        """Copies of the states of the streams in some slots, of each [n, ..]; of one without the first axis."""
        return [np.array(state[self.turn[slots], slots]) for state in self.states]

    def put(self, slots, values):
        """What a step made of the states, in the place of `get`'s; until `commit` they are as before."""
        for state, value in zip(self.states, values):
            state[1 - self.turn[slots], slots] = value

    def commit(self, cnp.ndarray slots):
        """What was written is the state of these streams, slots [n] intp."""
        cdef const Py_ssize_t *slot = <const Py_ssize_t *>cnp.PyArray_DATA(slots)
        cdef unsigned char *turn = <unsigned char *>cnp.PyArray_DATA(self.turn)
        cdef Py_ssize_t i
        for i in range(cnp.PyArray_SIZE(slots)):
            turn[slot[i]] ^= 1

    def load(self, Py_ssize_t slot, values):
        """The states of a stream: arrays, or None for zeros."""
        for i, state in enumerate(self.states):
            state[:, slot] = 0 if values is None else values[i]

    def step(self, cnp.ndarray slots, list frames, list results, list chunks, int threads):
        """Advances the streams in these slots [n] intp. frames, results: arrays [n, ..], each row contiguous. chunks:
        (BatchedProgram, first, count) of parts of them."""
        cdef PoolStep s
        cdef team crew
        cdef unsigned mode
        cdef Py_ssize_t i, most = 0
        cdef int items
        cdef BatchedProgram batch
        cdef cnp.ndarray array, table = np.empty(len(chunks) * sizeof(Chunk), np.uint8)
        memset(&s, 0, sizeof(s))
        s.slots = <const Py_ssize_t *>cnp.PyArray_DATA(slots)
        s.turn = <const unsigned char *>cnp.PyArray_DATA(self.turn)
        s.capacity, s.states, s.n_states = self.capacity, self.data, len(self.states)
        s.n_frames, s.n_results = len(frames), len(results)
        for i in range(s.n_frames):
            array = frames[i]
            s.frames[i], s.frame_strides[i] = <const char *>cnp.PyArray_DATA(array), cnp.PyArray_STRIDE(array, 0)
        for i in range(s.n_results):
            array = results[i]
            s.results[i], s.result_strides[i] = <char *>cnp.PyArray_DATA(array), cnp.PyArray_STRIDE(array, 0)
        s.chunks, s.n_chunks = <Chunk *>cnp.PyArray_DATA(table), len(chunks)
        for i in range(s.n_chunks):
            batch, first, count = chunks[i]
            s.chunks[i].plan, s.chunks[i].first, s.chunks[i].count = &batch.plan, first, count
            most = max(most, batch.plan.nbytes)
        threads = min(useful_threads(threads), s.n_chunks)
        items = max(threads, 1)
        s.lane_bytes, s.backwards = most, self.backwards
        self.backwards ^= 1
        if self.memory is None or self.memory.size * <Py_ssize_t>sizeof(float) < items * most:
            self.memory = AlignedFloats((items * most + 3) // 4)
        s.lanes = <char *>self.memory.p
        with nogil:
            mode = active.flush_denormals()
            if threads > 1:
                team_open(&crew, threads, False)
                team_each(&crew, items, run_lane, &s)
                team_close(&crew)
            else:
                run_lane(&s, 0, 1)
            active.restore_mode(mode)
        if s.failed:
            batch = chunks[(s.failed - 1) % s.n_chunks][0]
            batch.program.check(s.lanes + (s.failed - 1) // s.n_chunks * most)


def threads_for(int threads, flops):
    """How many of these threads are worth their while for so many floating-point operations, of which a thread takes
    100 in a nanosecond."""
    return useful_threads(threads) if flops // 100 >= SHARED_COST or forced else 1


def stacked(list values, cnp.ndarray like):
    """Arrays of the type and shape of `like` along a new first axis; None where one is not like it."""
    cdef cnp.ndarray out = np.empty((len(values), *np.shape(like)), like.dtype), array
    cdef char *to = <char *>cnp.PyArray_DATA(out)
    cdef Py_ssize_t nbytes = cnp.PyArray_NBYTES(like)
    if like.dtype.hasobject:
        return None
    for value in values:
        if not is_like(value, like):
            return None
        array = value if cnp.PyArray_ISCARRAY_RO(value) else np.array(value, order="C")
        memcpy(to, cnp.PyArray_DATA(array), nbytes)
        to += nbytes
    return out
