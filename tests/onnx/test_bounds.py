"""Native steps touch no memory but that of their arrays, each of which lies between pages that cannot be accessed."""

import ctypes
import mmap

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.native import _engine, _programs
from rnnfast.onnx.compile import builder
from tests.graphs import parse

LIBC = ctypes.CDLL(None, use_errno=True)
SIZES = (1, 2, 3, 5, 7, 8, 15, 16, 17, 18, 31, 33, 47, 50, 65)


def guarded(nbytes, at_end):
    """Writeable bytes that end where a page without access begins, or begin where one ends."""
    room = (nbytes + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    start = builder.address(whole)
    for page in (start, start + mmap.PAGESIZE + room):
        assert LIBC.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    first = mmap.PAGESIZE + (room - nbytes if at_end else 0)
    return whole[first : first + nbytes]


def copied(array, at_end):
    copy = guarded(array.nbytes, at_end).view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


@pytest.fixture(params=[True, False], ids=["end", "start"])
def at_end(request):
    return request.param


@pytest.fixture
def guard_buffers(monkeypatch, at_end):
    """A switch: from then on buffers and constants of native steps are guarded, outputs are copies of such buffers."""
    location_of, program = builder.Builder._location_of, builder.Builder.program

    def guarded_location_of(self, view):
        buffer = self.allocation_of(view)
        if buffer.kind in (builder.INPUT, builder.OUTPUT) or any(
            self.allocation_of(s) is buffer for s, *_ in self._checks
        ):
            return location_of(self, view)
        held = self.__dict__.setdefault("held", {})
        if buffer not in held:
            held[buffer] = guarded(buffer.array.nbytes, at_end)
            self.keep.append(held[buffer])
            if buffer.kind == builder.CONSTANT:
                ctypes.memmove(builder.address(held[buffer]), buffer.address, buffer.array.nbytes)
        return 0, builder.address(held[buffer]) + builder.address(view) - buffer.address

    def program_of_copies(self, outputs, work):
        for operand in outputs:
            view = self.view(operand)
            copy = self.new(view.shape, view.dtype)
            self.copy(copy, view)
            self.set(operand, copy)
        return program(self, outputs, work)

    def switch():
        monkeypatch.setattr(builder.Builder, "_location_of", guarded_location_of)
        monkeypatch.setattr(builder.Builder, "program", program_of_copies)

    return switch


def sizes(rng, n):
    return [int(rng.choice(SIZES)) for _ in range(n)]


def values(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def elementwise(rng):
    a, b, c = sizes(rng, 3)
    return (
        """g (float[a,b,c] x, float[c] y, bool[b,c] m, float[a,b,1] w) => (p, q, r, s, t) {
        p = Add (x, y)  e = Exp (x)  f = Tanh (e)  q = Mul (f, w)  r = Where (m, x, y)  s = Less (x, w)
        u = Transpose <perm = [2, 0, 1]> (x)  t = Neg (u) }""",
        dict(x=values(rng, a, b, c), y=values(rng, c), m=rng.random((b, c)) < 0.5, w=values(rng, a, b, 1)),
        {},
    )


def product(rng):
    a, b, k, n = sizes(rng, 4)
    return (
        """g (float[a,b,k] x, float[a,k,n] v, float[k] one) => (p, q, r, s) {
        p = MatMul (x, w)  q = MatMul (x, v)  r = MatMul (x, one)  t = Transpose <perm = [1, 0, 2]> (p)
        s = Add (t, bias) }""",
        dict(x=values(rng, a, b, k), v=values(rng, a, k, n), one=values(rng, k)),
        dict(w=values(rng, k, n), bias=values(rng, n)),
    )


def gemm(rng):
    a, k, n = sizes(rng, 3)
    return (
        "g (float[a,k] x) => (p, q) { p = Gemm <transB = 1> (x, w, bias)  q = Softmax (p) }",
        dict(x=values(rng, a, k)),
        dict(w=values(rng, n, k), bias=values(rng, n)),
    )


def convolution(rng):
    n, c, m = sizes(rng, 3)
    kernel, stride, dilation = (rng.integers(1, 4, 2) for _ in range(3))
    pads = [int(rng.integers(0, k)) for k in (*kernel, *kernel)]
    h, w = (int((k - 1) * d + 1 + rng.integers(0, 20)) for k, d in zip(kernel, dilation))
    settings = f"strides = [{stride[0]}, {stride[1]}], dilations = [{dilation[0]}, {dilation[1]}], pads = {pads}"
    n = min(n, 3)
    return (
        f"""g (float[n,c,h,w] x) => (p, q, r) {{ p = Conv <{settings}> (x, k, b)
        q = Conv <{settings}, group = {c}> (x, d)  s = Conv <{settings}> (x, k)  r = Relu (s) }}""",
        dict(x=values(rng, n, c, h, w)),
        dict(k=values(rng, m, c, *kernel), b=values(rng, m), d=values(rng, c, 1, *kernel)),
    )


def convolution_1(rng):
    n, c, m = sizes(rng, 3)
    kernel, length = int(rng.integers(1, 6)), int(rng.integers(6, 70))
    return (
        f"""g (float[n,c,l] x) => (p, q) {{ p = Conv <pads = [{kernel - 1}, 0]> (x, k, b)
        q = Conv <strides = [{kernel}], group = {c}> (x, d) }}""",
        dict(x=values(rng, n, c, length)),
        dict(k=values(rng, m, c, kernel), b=values(rng, m), d=values(rng, c, 1, kernel)),
    )


def pool(rng):
    n, c = sizes(rng, 2)
    h, w = (int(v) for v in rng.integers(3, 20, 2))
    s, ceil, count = int(rng.integers(1, 4)), int(rng.integers(0, 2)), int(rng.integers(0, 2))
    return (
        f"""g (float[n,c,h,w] x) => (p, q, r, s) {{
        p = MaxPool <kernel_shape = [3, 2], strides = [{s}, 1], pads = [1, 0, 1, 1], ceil_mode = {ceil}> (x)
        q = AveragePool <kernel_shape = [2, 3], strides = [1, {s}], pads = [0, 2, 1, 1],
                         count_include_pad = {count}> (x)
        r = GlobalAveragePool (x)  s = MaxPool <kernel_shape = [2, 2], dilations = [2, 1]> (x) }}""",
        dict(x=values(rng, n, c, h, w)),
        {},
    )


def reduction(rng):
    a, b, c = sizes(rng, 3)
    return (
        """g (float[a,b,c] x) => (p, q, r, s, t, u, v) {
        p = ReduceMean <axes = [0]> (x)  q = ReduceMax <axes = [2]> (x)  r = ReduceL2 <axes = [0, 2]> (x)
        s = ReduceProd <axes = [1]> (x)  t = LogSoftmax <axis = 1> (x)  u = Softmax (x)
        v = LayerNormalization (x, g, b) }""",
        dict(x=values(rng, a, b, c)),
        dict(g=values(rng, c), b=values(rng, c)),
    )


def order(rng):
    a, b = sizes(rng, 2)
    return (
        """g (float[a,b] x, int64[a,b] i) => (p, q, r, s, t) { p, q = TopK <axis = 0> (x, k)
        r = ArgMax <axis = 1> (x)  s = ArgMin <axis = 0> (i)  t = Add (i, i) }""",
        dict(x=values(rng, a, b), i=rng.integers(-9, 9, (a, b))),
        dict(k=np.array([int(rng.integers(1, a + 1))])),
    )


def movement(rng):
    a, b, c = sizes(rng, 3)
    return (
        """g (float[a,b,c] x, uint8[a,b,c] u, int64[n] i) => (p, q, r, s, t, v) {
        p = Transpose <perm = [1, 2, 0]> (x)  q = Transpose <perm = [2, 1, 0]> (u)  r = Concat <axis = 1> (x, x)
        s = Gather <axis = 1> (x, i)  t = Gather <axis = 2> (x, last)  v = Pad (x, pads) }""",
        dict(x=values(rng, a, b, c), u=rng.integers(0, 255, (a, b, c)).astype(np.uint8), i=rng.integers(-b, b, 7)),
        dict(last=np.array([c - 1, 0, c - 1]), pads=np.array([0, 1, 2, 1, 0, 1])),
    )


def casts(rng):
    a, b = sizes(rng, 2)
    return (
        """g (float[a,b] x, int32[a,b] i, bool[a,b] m) => (p, q, r, s, t) { p = Cast <to = 7> (x)
        q = Cast <to = 1> (i)  r = Cast <to = 9> (x)  s = Cast <to = 6> (m)  t = Mul (i, i) }""",
        dict(x=values(rng, a, b), i=rng.integers(-9, 9, (a, b)).astype(np.int32), m=rng.random((a, b)) < 0.5),
        {},
    )


def recurrent(rng):
    T, B, i, H = sizes(rng, 4)
    T, B, kind = min(T, 7), min(B, 18), ["RNN", "GRU", "LSTM"][int(rng.integers(3))]
    G = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    return (
        f"""g (float[t,b,i] x, float[2,b,h] h0, int32[b] lens) => (p, q, r, s) {{
        p, q = {kind} <direction = "bidirectional", hidden_size = {H}> (x, w, r_, , , h0)
        r, s = {kind} <direction = "bidirectional", hidden_size = {H}> (x, w, r_, , lens) }}""",
        dict(x=values(rng, T, B, i), h0=values(rng, 2, B, H), lens=rng.integers(0, T + 1, B).astype(np.int32)),
        dict(w=values(rng, 2, G * H, i), r_=values(rng, 2, G * H, H)),
    )


def views(rng):
    a, b, c = (n + 2 for n in sizes(rng, 3))
    return (
        """g (float[a,b,c] x) => (p, q, r, s, t, u, v) {
        y = Slice (x, one, end, axes)  z = Transpose <perm = [0, 2, 1]> (y)  p = MatMul (y, w)  q = MatMul (z, y)
        r = Softmax (y)  s = ReduceSum <keepdims = 0> (y, last)  t = Conv (y, k)  u = MaxPool <kernel_shape = [2]> (z)
        e = Exp (y)  v = Mul (e, e) }""",
        dict(x=values(rng, a, b, c)),
        dict(
            one=np.array([1, 1]),
            end=np.array([b, c]),
            axes=np.array([1, 2]),
            last=np.array([1]),
            w=values(rng, c - 1, 18),
            k=values(rng, 17, b - 1, 1),
        ),
    )


def scatter(rng):
    a, b = (n + 1 for n in sizes(rng, 2))
    places = rng.permutation(a)[: int(rng.integers(1, a + 1))].reshape(-1, 1)
    return (
        """g (float[a,b] x, int64[n,o] i, float[n,b] u) => (p, q) {
        p = ScatterND (x, i, u)  q = ScatterND (x, j, u) }""",
        dict(x=values(rng, a, b), i=places, u=values(rng, len(places), b)),
        dict(j=places - a),
    )


def large_convolution(rng):
    c, m = int(rng.integers(1, 4)), int(rng.integers(0, 4))
    h, w = (int(v) for v in rng.integers(48, 54, 2))
    return (
        """g (float[n,c,h,w] x) => (p, q) {
        s = Conv <pads = [1, 1, 1, 1]> (x, k, b)  t = Sigmoid (s)  p = Mul (s, t)
        u = Conv (p, k1)  y = Relu (u)  q = Add (y, y) }""",
        dict(x=values(rng, 1, c, h, w)),
        dict(k=values(rng, m + 16, c, 3, 3), b=values(rng, m + 16), k1=values(rng, m + 16, m + 16, 1, 1)),
    )


GRAPHS = (
    elementwise,
    product,
    gemm,
    convolution,
    convolution_1,
    pool,
    reduction,
    order,
    movement,
    casts,
    recurrent,
    views,
    scatter,
    large_convolution,
)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("make", GRAPHS)
def test_memory_of_others_is_not_touched(isa, guard_buffers, at_end, forced, make, threads):
    rng = np.random.default_rng(7)
    cases = [make(rng) for _ in range(3 if make is large_convolution else 8)]
    models = [parse(text, **constants) for text, _, constants in cases]
    expected = [rnnfast.load(m, threads=threads)(inputs) for m, (_, inputs, _) in zip(models, cases)]
    guard_buffers()
    native = 0
    for source, (_, inputs, _), right in zip(models, cases, expected):
        model = rnnfast.load(source, threads=threads)
        outputs = model({name: copied(array, at_end) for name, array in inputs.items()})
        native += sum(
            isinstance(run, _programs.NativeProgram) for plan in model.planned.plans.kept for run, *_ in plan.steps
        )
        for name, y in right.items():
            np.testing.assert_array_equal(outputs[name], y)
    assert native


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_packed_sequences_touch_no_memory_of_others(isa, at_end, forced, kind, threads):
    rng = np.random.default_rng(8)
    for _ in range(6):
        rows, i, H = sizes(rng, 3)
        layer = getattr(nn, kind)(i, H, bidirectional=True, rng=9)
        lengths = rng.integers(1, 9, rows)
        packed = nn.pack_sequence([values(rng, n, i) for n in lengths], enforce_sorted=False)
        y = guarded(packed.data.shape[0] * 2 * H * 4, at_end).view(np.float32).reshape(-1, 1, 2, H)
        _engine.recurrent(
            layer._packed[0],
            (False, True),
            copied(packed.data[:, None], at_end),
            y.swapaxes(1, 2),
            threads=threads,
            batch_sizes=packed.batch_sizes,
        )
        np.testing.assert_array_equal(y.reshape(-1, 2 * H), layer(packed)[0].data)
