"""Many streams: their ids, their states in packed arrays, and steps of some of them by batched native programs."""
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

cimport cython
cimport numpy as cnp

import math

import numpy as np

from rnnfast.errors import ClosedError, InputError, InputTypeError, LimitError, raise_if_from_handler

from rnnfast.native._kernels cimport *
from rnnfast.native._arrays cimport *
from rnnfast.native._programs cimport *

cnp.import_array()


cdef class Slots:
    """The open streams of a pool, and the slots that they have in its state table.

    A stream's id is its slot plus `capacity` times the number of streams that had the slot before, so that no id comes
    back. Any thread may be here at any time, a finalizer in the midst of a step too. Therefore a stream that is closed
    keeps its slot until the pool calls `free`, between two steps.

    All of it is within critical sections, which are not nested.

    Attributes:
        steps: How many steps of `Pool.step_validated` were committed: whether one that was interrupted is among them.
    """
    cdef readonly Py_ssize_t capacity, steps
    cdef Py_ssize_t n_open, n_closed, stamp, n_free
    cdef str label
    cdef Py_ssize_t[::1] ids            # slot -> the id of its stream, or of the next stream that takes it
    cdef Py_ssize_t[::1] free_slots     # the first n_free of these are free
    cdef Py_ssize_t[::1] closed_slots   # the first n_closed of these are those of closed streams
    cdef Py_ssize_t[::1] stamps         # slot -> the number of the last lookup that found it
    cdef unsigned char[::1] taken       # slot -> whether its stream is open

    def __init__(self, Py_ssize_t capacity, label):
        self.capacity, self.n_open, self.stamp, self.label = capacity, 0, 0, label
        self.n_free, self.n_closed, self.steps = capacity, 0, 0
        self.ids = np.arange(capacity)
        self.free_slots, self.closed_slots = np.arange(capacity - 1, -1, -1), np.empty(capacity, np.intp)
        self.stamps, self.taken = np.zeros(capacity, np.intp), np.zeros(capacity, np.uint8)

    @property
    def count(self):
        """How many streams are open."""
        with cython.critical_section(self):
            return self.n_open

    @property
    def closed(self):
        """How many closed streams have a slot still."""
        with cython.critical_section(self):
            return self.n_closed

    def open(self, list opened, begin, *args):
        """Open a stream: call begin(slot, *args) and append its id to `opened`; nothing where all slots are taken.

        If `begin` raises, the slot is free again. A signal's handler that raises later finds the id in `opened`.
        """
        cdef Py_ssize_t slot
        with cython.critical_section(self):
            if not self.n_free:
                return
            self.n_free -= 1
            slot = self.free_slots[self.n_free]
        try:
            begin(slot, *args)
        except BaseException:
            with cython.critical_section(self):
                self.free_slots[self.n_free] = slot
                self.n_free += 1
            raise
        with cython.critical_section(self):
            opened.append(self.ids[slot])
            self.taken[slot] = True
            self.n_open += 1

    def take_back(self, list opened):
        """Close those of these streams that are open. It calls nothing that looks for signals, as NumPy does."""
        cdef Py_ssize_t stream, slot
        for stream in opened:
            slot = stream % self.capacity
            with cython.critical_section(self):
                if self.taken[slot] and self.ids[slot] == stream:
                    self.close_slot(slot)

    cdef void close_slot(self, Py_ssize_t slot) noexcept:
        self.taken[slot] = False
        self.ids[slot] += self.capacity
        self.closed_slots[self.n_closed] = slot
        self.n_closed += 1
        self.n_open -= 1

    def close(self, ids):
        """Close these streams, [n] intp; raise unless all are open and different."""
        cdef cnp.ndarray found = np.empty(len(ids), np.intp)
        cdef const Py_ssize_t *slots = <const Py_ssize_t *>cnp.PyArray_DATA(found)
        cdef Py_ssize_t i
        with cython.critical_section(self):
            self.look_up(ids, found)
            for i in range(cnp.PyArray_SIZE(found)):
                self.close_slot(slots[i])

    def closed_slot(self):
        """Return the slot of a closed stream."""
        with cython.critical_section(self):
            return self.closed_slots[self.n_closed - 1]

    def free(self, Py_ssize_t slot):
        """Free the slot of a closed stream."""
        cdef Py_ssize_t i
        with cython.critical_section(self):
            for i in range(self.n_closed):
                if self.closed_slots[i] == slot:
                    self.n_closed -= 1
                    self.closed_slots[i] = self.closed_slots[self.n_closed]
                    self.free_slots[self.n_free] = slot
                    self.n_free += 1
                    return

    def opened(self):
        """Return the ids of the open streams, an array [n]."""
        cdef cnp.ndarray ids = np.empty(self.capacity, np.intp)
        cdef Py_ssize_t *found = <Py_ssize_t *>cnp.PyArray_DATA(ids)
        cdef Py_ssize_t slot, n = 0
        with cython.critical_section(self):
            for slot in range(self.capacity):
                if self.taken[slot]:
                    found[n] = self.ids[slot]
                    n += 1
        return ids[:n].copy()

    def as_ids(self, ids):
        """Return a caller's ids as an array [n] intp, which is its own, or raise InputTypeError."""
        cdef cnp.ndarray array
        try:
            array = np.asarray(ids)
        except ValueError as e:
            raise_if_from_handler(e)
            raise InputTypeError(f"{self.label}: stream ids are no array: {e}") from e
        if array.ndim != 1 or array.dtype.kind not in "iu" and array.size:
            raise InputTypeError(f"{self.label}: stream ids are {array.dtype} of shape {list(np.shape(array))}, "
                                 "expected integers [n]")
        return array.astype(np.intp)

    def find(self, ids):
        """Return the slots of these streams, given as [n] intp; raise unless all are open and different."""
        found = np.empty(len(ids), np.intp)
        with cython.critical_section(self):
            self.look_up(ids, found)
        return found

    cdef int look_up(self, cnp.ndarray ids, cnp.ndarray found) except -1:
        """Write the slots of these streams to `found`; both are [n] intp and contiguous."""
        cdef const Py_ssize_t *id_of = <const Py_ssize_t *>cnp.PyArray_DATA(ids)
        cdef Py_ssize_t *slots = <Py_ssize_t *>cnp.PyArray_DATA(found)
        cdef Py_ssize_t i, slot
        self.stamp += 1
        for i in range(cnp.PyArray_SIZE(found)):
            slot = id_of[i] % self.capacity if id_of[i] >= 0 else 0
            if self.ids[slot] != id_of[i] or not self.taken[slot]:
                if 0 <= id_of[i] < self.ids[slot]:
                    raise ClosedError(f"{self.label}: stream {id_of[i]} is closed")
                raise InputError(f"{self.label}: stream {id_of[i]} was never opened")
            if self.stamps[slot] == self.stamp:
                raise InputError(f"{self.label}: stream {id_of[i]} is given twice")
            self.stamps[slot] = self.stamp
            slots[i] = slot
        return 0


cdef struct BatchBinding:
    # How a stream's value lies in a buffer of a batch of n streams. The value is `outer` pieces of `inner` bytes; piece
    # o of stream i lies at (o * n + i) * inner.
    int buffer                  # of the program; -1 for a value that the program does not read
    Py_ssize_t outer, inner
    Py_ssize_t offset           # of the batch, in the workspace of a thread


cdef struct BatchLayout:
    const Py_ssize_t *words
    const Py_ssize_t *noted
    Py_ssize_t n_words, n_noted, size, nbytes
    loop_allowance allowed
    int n_buffers
    char *base[MAX_BUFFERS]
    BatchBinding frames[MAX_BUFFERS]
    BatchBinding reads[MAX_BUFFERS]
    BatchBinding writes[MAX_BUFFERS]
    BatchBinding results[MAX_BUFFERS]


cdef struct Chunk:
    const BatchLayout *layout
    Py_ssize_t first, count     # its streams; rows from `count` to the size of the program repeat the last one


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
    Py_ssize_t next             # the chunk that is to be taken next
    char *lanes                 # the workspaces of the threads, `lane_bytes` each
    Py_ssize_t failed           # 0, or 1 + c + n_chunks * lane for any one chunk c that met a value out of range
    int backwards
    interrupt *call


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
    """Return whether the caller's rows can serve as the batch without a copy."""
    return p.outer == 1 and stride == p.inner and c.count == c.layout.size


cdef inline char *state_of(const PoolStep *s, int i, const BatchBinding *p, Py_ssize_t slot, int turn) noexcept nogil:
    return s.states[i] + (turn * s.capacity + slot) * p.outer * p.inner


cdef bint adjacent(const PoolStep *s, const Chunk *c) noexcept nogil:
    """Return whether the states of a chunk's streams lie one after the other and are read at the same turn."""
    cdef const Py_ssize_t *slots = s.slots + c.first
    cdef Py_ssize_t row
    if c.count < c.layout.size:
        return False
    for row in range(1, c.count):
        if slots[row] != slots[0] + row or s.turn[slots[row]] != s.turn[slots[0]]:
            return False
    return True


cdef bint run_chunk(const PoolStep *s, const Chunk *c, char *lane, watch *own) noexcept nogil:
    """Run a chunk; return False if it met a value that is out of range or the call was stopped."""
    cdef const BatchLayout *layout = c.layout
    cdef const BatchBinding *p
    cdef char *buffers[MAX_BUFFERS]
    cdef context x
    cdef loop_allowance left = layout.allowed
    cdef Py_ssize_t row, slot, n = layout.size
    cdef int i
    # States that lie together are read and written in place: LSTM H128, 1,024 streams: 0.94 of the time.
    cdef bint whole = adjacent(s, c)
    memcpy(buffers, layout.base, layout.n_buffers * sizeof(char *))
    buffers[1] = lane
    for i in range(s.n_frames):
        p = &layout.frames[i]
        if p.buffer < 0:
            continue
        if direct(p, s.frame_strides[i], c):
            buffers[p.buffer] = <char *>s.frames[i] + c.first * s.frame_strides[i]
            continue
        buffers[p.buffer] = lane + p.offset
        for row in range(n):
            gather_row(p, buffers[p.buffer], n, row,
                       s.frames[i] + (c.first + min(row, c.count - 1)) * s.frame_strides[i])
    for i in range(s.n_states):
        p = &layout.reads[i]
        slot = s.slots[c.first]
        if p.buffer >= 0 and whole and p.outer == 1:
            buffers[p.buffer] = state_of(s, i, p, slot, s.turn[slot])
        elif p.buffer >= 0:
            buffers[p.buffer] = lane + p.offset
            for row in range(n):
                slot = s.slots[c.first + min(row, c.count - 1)]
                gather_row(p, buffers[p.buffer], n, row, state_of(s, i, p, slot, s.turn[slot]))
        p = &layout.writes[i]
        slot = s.slots[c.first]
        if p.buffer >= 0:
            buffers[p.buffer] = (state_of(s, i, p, slot, 1 - s.turn[slot]) if whole and p.outer == 1
                                 else lane + p.offset)
    for i in range(s.n_results):
        p = &layout.results[i]
        buffers[p.buffer] = lane + p.offset
        if direct(p, s.result_strides[i], c):
            buffers[p.buffer] = s.results[i] + c.first * s.result_strides[i]
    x.buffers, x.isa, x.threads, x.backwards = buffers, active, 1, s.backwards
    x.iteration, x.left, x.watch = 0, &left, own
    execute(layout.words, layout.n_words, &x)
    if stopped(s.call):
        return False
    for i in range(layout.n_noted):
        if (<const int64_t *>(lane + layout.noted[i]))[0]:
            return False
    for i in range(s.n_states):
        p = &layout.writes[i]
        if p.buffer >= 0 and not (whole and p.outer == 1):
            for row in range(c.count):
                slot = s.slots[c.first + row]
                scatter_row(p, buffers[p.buffer], n, row, state_of(s, i, p, slot, 1 - s.turn[slot]))
    for i in range(s.n_results):
        p = &layout.results[i]
        if not direct(p, s.result_strides[i], c):
            for row in range(c.count):
                scatter_row(p, buffers[p.buffer], n, row, s.results[i] + (c.first + row) * s.result_strides[i])
    return True


cdef extern from *:
    """
    #define TAKE(p) __atomic_fetch_add(p, 1, __ATOMIC_RELAXED)
    #define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
    """
    Py_ssize_t take "TAKE"(Py_ssize_t *) noexcept nogil
    void store "STORE"(Py_ssize_t *, Py_ssize_t) noexcept nogil


cdef void run_lane(void *argument, int item, int items) noexcept nogil:
    """Take and run chunks until there are none left."""
    cdef PoolStep *s = <PoolStep *>argument
    cdef Py_ssize_t c = take(&s.next)
    cdef watch own = watch_of(s.call)
    while c < s.n_chunks:
        if not run_chunk(s, &s.chunks[c], s.lanes + item * s.lane_bytes, &own):
            store(&s.failed, 1 + c + item * s.n_chunks)
            return
        c = take(&s.next)


cdef class BatchedProgram:
    """A NativeProgram for `size` streams, and how the values of streams lie in its buffers.

    A buffer is given by its number, which counts the program's inputs and then its outputs, without the constants and
    the arena; -1 is none. An axis of -1 means that the whole array belongs to the only stream.

    Args:
        frames: (buffer, axis of the streams) of each input that is new at each step.
        states: (buffer read, buffer written, axis of the streams) of each state.
        results: (buffer, axis of the streams) of each result.
        fixed: (buffer, array) of each input that all streams share.
    """
    cdef BatchLayout layout
    cdef NativeProgram program
    cdef tuple held

    def __init__(self, NativeProgram program, Py_ssize_t size, frames, states, results, fixed):
        cdef BatchLayout *p = &self.layout
        cdef int i
        if max(len(frames), len(states), len(results)) > MAX_BUFFERS:
            raise LimitError(f"{len(frames)} inputs, {len(states)} states and {len(results)} outputs of a stream")
        self.program = program
        p.words, p.n_words, p.noted, p.n_noted = program.words, program.n_words, program.noted, program.n_noted
        p.allowed, p.size = program.allowed, size
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
            p.buffer, p.offset = 2 + buffer, self.layout.nbytes
            p.outer = math.prod(shape[:axis]) if axis >= 0 else 1
            p.inner = math.prod(shape[axis + 1:] if axis >= 0 else shape) * dtype.itemsize
            self.layout.nbytes += lines(p.outer * p.inner * self.layout.size)
        return 0

    @property
    def nbytes(self):
        """The bytes of the workspace of one thread."""
        return self.layout.nbytes


cdef Py_ssize_t lines(Py_ssize_t nbytes):
    """Return whole cache lines for so many bytes, with one more that may be read past the end."""
    return (nbytes + 127) // 64 * 64


cdef class StateTable:
    """The states of `capacity` streams, and steps of some of the streams at a time.

    There are two arrays of each state, read and written in turn, so that a step changes nothing before `commit`. One
    thread at a time may be here.

    Args:
        forms: (shape, dtype) of each state of one stream.
    """
    cdef readonly Py_ssize_t capacity
    cdef readonly list states           # of each state [2, capacity, ...]
    cdef cnp.ndarray turn               # [capacity]: which of the two each stream reads next
    cdef char *data[MAX_BUFFERS]
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
        """Return copies of the states of the streams in these slots, [n, ...] each; without that axis for one slot."""
        return [np.array(state[self.turn[slots], slots]) for state in self.states]

    def put(self, slots, values):
        """Write new states; they take effect at `commit`."""
        for state, value in zip(self.states, values):
            state[1 - self.turn[slots], slots] = value

    cdef void commit(self, cnp.ndarray slots) noexcept:
        """Let the states that were written last take effect, for the streams in these slots [n] intp.

        This flips which of the two arrays of each state a stream reads next, whether or not the other was written.
        """
        cdef const Py_ssize_t *slot = <const Py_ssize_t *>cnp.PyArray_DATA(slots)
        cdef unsigned char *turn = <unsigned char *>cnp.PyArray_DATA(self.turn)
        cdef Py_ssize_t i
        for i in range(cnp.PyArray_SIZE(slots)):
            turn[slot[i]] ^= 1

    def load(self, Py_ssize_t slot, values):
        """Write new states of a stream, None for zeros; they take effect at `commit`."""
        for i, state in enumerate(self.states):
            state[1 - self.turn[slot], slot] = 0 if values is None else values[i]

    def step(self, cnp.ndarray slots, list frames, list results, list chunks, int threads):
        """Advance the streams in these slots; the new states wait for `commit`.

        Args:
            slots: [n] intp.
            frames: Arrays [n, ...], each row contiguous.
            results: Arrays [n, ...] that are written, each row contiguous.
            chunks: (BatchedProgram, first, count) of the parts of the streams.
        """
        cdef PoolStep s
        cdef interrupt call
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
            s.chunks[i].layout, s.chunks[i].first, s.chunks[i].count = &batch.layout, first, count
            most = max(most, batch.layout.nbytes)
        threads = min(useful_threads(threads), s.n_chunks)
        items = max(threads, 1)
        s.lane_bytes, s.backwards = most, self.backwards
        self.backwards ^= 1
        if not s.n_chunks:
            return
        batch = chunks[0][0]
        cdef Arenas arenas = batch.program.arenas
        cdef block *memory = arenas.borrow(items * most)
        s.lanes = memory_of(memory)
        begin(&call, batch.program.seconds)
        s.call = &call
        with nogil:
            mode = active.flush_denormals()
            if threads > 1:
                team_open(&crew, threads, False)
                team_each(&crew, items, run_lane, &s)
                team_close(&crew)
            else:
                run_lane(&s, 0, 1)
            active.restore_mode(mode)
        try:
            finish(&call)
            if s.failed:
                batch = chunks[(s.failed - 1) % s.n_chunks][0]
                batch.program.check(s.lanes + (s.failed - 1) // s.n_chunks * most)
        finally:
            arenas.give_back(memory)


def commit(list parts, Slots counting=None):
    """Commit the states of streams in several tables: (StateTable, slots) of each. No signal parts them.

    Where `counting` is given, its `steps` count this one.
    """
    cdef tuple part
    for part in parts:
        (<StateTable>part[0]).commit(<cnp.ndarray>part[1])
    if counting is not None:
        counting.steps += 1


def threads_for(int threads, flops):
    """Return how many of these threads pay off for so many floating-point operations; a thread does 100 in 1 ns."""
    return useful_threads(threads) if flops // 100 >= SHARED_COST or forced else 1


def stacked(list values, cnp.ndarray like):
    """Stack arrays of the type and shape of `like` along a new first axis; return None where one differs."""
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


def unstacked(cnp.ndarray values, shape):
    """Return the rows of an array [n, ...] as new arrays of this shape.

    A view of a row would keep the whole batch in memory for as long as somebody keeps that row.
    """
    cdef cnp.npy_intp dims[64]
    cdef Py_ssize_t i, n = len(values), nbytes, ndim = len(shape)
    cdef int kind = cnp.PyArray_TYPE(values)
    cdef const char *source
    cdef cnp.ndarray row
    if values.dtype.hasobject or ndim > 64 or not cnp.PyArray_ISCARRAY_RO(values):
        return [np.array(values[i:i + 1].reshape(shape)) for i in range(n)]
    for i in range(ndim):
        dims[i] = shape[i]
    nbytes = cnp.PyArray_NBYTES(values) // n if n else 0
    source = <const char *>cnp.PyArray_DATA(values)
    rows = []
    for i in range(n):
        row = cnp.PyArray_EMPTY(<int>ndim, dims, kind, 0)
        memcpy(cnp.PyArray_DATA(row), source + i * nbytes, nbytes)
        rows.append(row)
    return rows


def pad(list parts, cnp.ndarray out):
    """Copy arrays [n, ...] into the rows of out [rows, frames, ...], of whatever strides, with zeros behind each.

    The arrays have the type of `out` and the shape of its frames, and no more frames.
    """
    cdef Py_ssize_t i, t, n, width, rows = cnp.PyArray_DIM(out, 0), frames = cnp.PyArray_DIM(out, 1)
    cdef Py_ssize_t row_stride = cnp.PyArray_STRIDE(out, 0), frame_stride = cnp.PyArray_STRIDE(out, 1)
    cdef char *to
    cdef const char *source
    cdef cnp.ndarray array
    if out.dtype.hasobject:
        for row, part in zip(out, parts):
            row[:len(part)] = part
            row[len(part):] = 0
        return
    if not out[:1, :1].flags.c_contiguous or len(parts) != rows:
        raise ValueError(f"out is {out.dtype} {np.shape(out)} for {len(parts)} rows, expected as many of whole frames")
    width = cnp.PyArray_NBYTES(out) // (rows * frames) if rows * frames else 0
    for i in range(rows):
        array = parts[i]
        if not cnp.PyArray_ISCARRAY_RO(array):
            array = np.array(array, order="C")
        n = cnp.PyArray_DIM(array, 0) if cnp.PyArray_NDIM(array) == cnp.PyArray_NDIM(out) - 1 else -1
        if not 0 <= n <= frames or cnp.PyArray_NBYTES(array) != n * width:
            raise ValueError(f"row {i} has shape {np.shape(array)}, expected [{frames}, {width} bytes] at most")
        to = <char *>cnp.PyArray_DATA(out) + i * row_stride
        source = <const char *>cnp.PyArray_DATA(array)
        if frame_stride == width:
            memcpy(to, source, n * width)
            memset(to + n * width, 0, (frames - n) * width)
        else:
            for t in range(frames):
                if t < n:
                    memcpy(to + t * frame_stride, source + t * width, width)
                else:
                    memset(to + t * frame_stride, 0, width)


def cut(cnp.ndarray values, list lengths):
    """Return the first frames of each row of values [rows, frames, ...], of whatever strides, as new arrays."""
    cdef cnp.npy_intp dims[64]
    cdef Py_ssize_t i, t, n, width, ndim = cnp.PyArray_NDIM(values) - 1
    cdef Py_ssize_t rows = cnp.PyArray_DIM(values, 0), frames = cnp.PyArray_DIM(values, 1)
    cdef Py_ssize_t row_stride = cnp.PyArray_STRIDE(values, 0), frame_stride = cnp.PyArray_STRIDE(values, 1)
    cdef int kind = cnp.PyArray_TYPE(values)
    cdef char *to
    cdef const char *source
    cdef cnp.ndarray row
    if len(lengths) != rows or any([not 0 <= n <= frames for n in lengths]):
        raise ValueError(f"values have shape {np.shape(values)} for rows of {lengths}")
    if values.dtype.hasobject or ndim > 64 or not values[:1, :1].flags.c_contiguous:
        return [values[i, :n].copy() for i, n in enumerate(lengths)]
    width = cnp.PyArray_NBYTES(values) // (rows * frames) if rows * frames else 0
    for i in range(1, ndim):
        dims[i] = cnp.PyArray_DIM(values, <int>i + 1)
    made = []
    for i in range(rows):
        dims[0] = n = lengths[i]
        row = cnp.PyArray_EMPTY(<int>ndim, dims, kind, 0)
        to, source = <char *>cnp.PyArray_DATA(row), <const char *>cnp.PyArray_DATA(values) + i * row_stride
        if frame_stride == width:
            memcpy(to, source, n * width)
        else:
            for t in range(n):
                memcpy(to + t * width, source + t * frame_stride, width)
        made.append(row)
    return made
