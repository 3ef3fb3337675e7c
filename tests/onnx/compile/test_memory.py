"""Bounds of native plans: arena, memory of many shapes, many threads on one model, times of commands."""

import threading
import time
import tracemalloc

import numpy as np
import pytest

import rnnfast
from tests.graphs import load, parse, random
from tests.onnx.compile.helpers import segment_of


def test_arena_is_no_larger_than_what_lives():
    """A chain of reshaped products: a few buffers live at a time."""
    nodes = " ".join(
        f"a{i + 1} = Concat <axis = 1> (b{i}, b{i})  b{i + 1} = Slice (a{i + 1}, nil, n, axis)" for i in range(30)
    )
    model = load(
        parse(
            f"g (float[m,64] x) => (y) {{ b0 = Neg (x) {nodes} y = Neg (b30) }}",
            nil=np.array([0]),
            n=np.array([64]),
            axis=np.array([1]),
        )
    )
    model(x=random(0, 50, 64))
    program = segment_of(model)
    assert program.live <= program.arena <= 1.5 * program.live < 10 * 2 * 50 * 64 * 4


def used_by_threads(model, feeds, seconds, count=8):
    """Call a model from several threads for some seconds, check every result's bits and return the number of calls."""
    expected = [list(model(feed).values()) for feed in feeds]
    end, failures, calls = time.monotonic() + seconds, [], [0] * count

    def work(k):
        rng = np.random.default_rng(k)
        while time.monotonic() < end and not failures:
            i = int(rng.integers(len(feeds)))
            for y, right in zip(model(feeds[i]).values(), expected[i]):
                if not np.array_equal(y, right):
                    failures.append(i)
            calls[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    return sum(calls)


def model_for_threads():
    return load(
        parse(
            """g (float[t,b,5] x) => (z) {
        p = MatMul (x, w)  r = Relu (p)  y = LSTM <hidden_size = 6> (r, gw, gr)  s = Squeeze (y, one)
        u = MatMul (s, v)  z = Tanh (u) }""",
            w=random(0, 5, 7),
            gw=random(2, 1, 24, 7),
            gr=random(3, 1, 24, 6),
            one=np.array([1]),
            v=random(5, 6, 11),
        )
    )


@pytest.mark.parametrize("seconds", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_many_threads_on_one_model(seconds):
    model = model_for_threads()
    feeds = [{"x": random(i, 3 + i, 1 + i % 3, 5)} for i in range(6)]
    used_by_threads(model, feeds, 0.3)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert used_by_threads(model, feeds, seconds) > 100
        assert tracemalloc.get_traced_memory()[0] - before < 2**18
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("calls", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_is_bounded_whatever_the_shapes(calls):
    model = rnnfast.load(
        parse("g (float[t,b,5] x) => (z) { p = MatMul (x, w)  r = Relu (p)  z = Mul (r, r) }", w=random(0, 5, 40)),
        plans=5,
    )
    rng = np.random.default_rng(0)

    def some(n):
        for _ in range(n):
            T, B = rng.integers(1, 60, 2)
            model(x=np.ones((T, B, 5), np.float32))

    some(60)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        some(calls)
        assert tracemalloc.get_traced_memory()[0] - before < 2**20
    finally:
        tracemalloc.stop()
    assert len(model.planned.plans.kept) == 5
    assert sum(program.arena for plan in model.planned.plans.kept for program, *_ in plan.steps) < 5 * 60 * 60 * 100 * 4


def test_an_empty_step_costs_little_memory():
    """Twenty nodes of four floats are one command without an arena."""
    chain = " ".join(f"v{i + 1} = {'Abs' if i % 2 else 'Neg'} (v{i})" for i in range(20))
    model = load(parse(f"g (float[4] v0) => (v20) {{ {chain} }}"))
    model(v0=random(0, 4))
    program = segment_of(model)
    assert len(program.notes) == 1 and program.arena == 0


def test_memory_of_a_call():
    """Is known before the call, and is what it takes; shapes that depend on values have none."""
    model = load(
        parse(
            "g (float[m,n] x) => (float[m,k] y) { a = MatMul (x, w)  b = Tanh (a)  c = MatMul (b, v)"
            "  d = Exp (c)  y = Softmax (d) }",
            w=random(0, 40, 500),
            v=random(1, 500, 60),
        )
    )
    x = random(2, 1000, 40)
    nbytes = model.memory(x=x)
    assert 1000 * (500 + 60) * 4 <= nbytes <= 1000 * (500 + 500 + 60) * 4 + 4096
    model(x=x)
    program = segment_of(model)
    assert nbytes == program.arena + 1000 * 60 * 4
    tracemalloc.start()
    try:
        model(x=x)
        assert tracemalloc.get_traced_memory()[1] < nbytes + 65536
    finally:
        tracemalloc.stop()
    assert model.memory(x=x[:10]) < nbytes / 20
    model = load(parse("g (float[n] x) => (int64[1,k] y) { y = NonZero (x) }"))
    assert model.memory(x=x[0]) is None


def test_times_of_commands():
    model = model_for_threads()
    x = random(0, 5, 2, 5)
    model(x=x)
    program = segment_of(model)
    times = program.times(x, rounds=3)
    assert len(times) == len(program.notes) == sum(t >= 0 for t in times) and max(times) > 0
    assert sum(note.flops for note in program.notes) > 0
