"""Sixteen threads on the same objects at once: each gets the bits that it would get alone, and all come to an end.

On an interpreter without the GIL they run side by side; with it they take turns, and the tests say less.
"""

import faulthandler
import subprocess
import sys
import sysconfig
import threading
import time

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import ClosedError, InputError, Overloaded
from rnnfast.native._locks import Allowance
from tests.cases import bits
from tests.graphs import parse, random

THREADS, ROUNDS = 16, 25
I, H = 5, 7
# Seconds after which threads count as standing still. They take about one; under a sanitizer, on few cores, a minute.
END = 300

WEIGHTS = {"w": random(1, 1, 3 * H, I), "r": random(2, 1, 3 * H, H), "b": random(3, 1, 6 * H)}
TEXT = """g (float[t,n,5] x, float[1,n,7] h) => (float[t,n,7] y, float[1,n,7] hn) {
    a, hn = GRU <hidden_size = 7, linear_before_reset = 1> (x, w, r, b, , h)  s = Squeeze (a, one)  y = Tanh (s) }"""
MODEL = parse(TEXT, one=[1], **WEIGHTS)
WITH_BIAS = parse(TEXT.replace("(float", "(float[1,42] b, float", 1), one=[1], **WEIGHTS)


def at_once(work, threads=THREADS):
    """Run work(i) in so many threads at the same time; raise what one of them raised."""
    start, errors = threading.Barrier(threads), []

    def run(i):
        try:
            start.wait(END)
            work(i)
        except BaseException as e:
            errors.append(e)

    members = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(threads)]
    end = time.monotonic() + END
    for member in members:
        member.start()
    for member in members:
        member.join(max(end - time.monotonic(), 0))
    if any(member.is_alive() for member in members):
        faulthandler.dump_traceback(all_threads=True)
        pytest.fail(f"{sum(member.is_alive() for member in members)} threads stand still")
    for error in errors:
        raise error


def feed(steps, rows, seed=0):
    return {"x": random(seed, steps, rows, I), "h": random(seed + 1, 1, rows, H)}


def frames(seed, count=ROUNDS):
    return random(seed, count, 1, I)


def test_importing_leaves_the_gil_off():
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this interpreter has a GIL and no way to be without it")
    code = """if True:
        import importlib, pkgutil, sys, numpy, onnx
        if not sys._is_gil_enabled():
            import rnnfast
            for module in pkgutil.walk_packages(rnnfast.__path__, "rnnfast."):
                if module.name.startswith(("rnnfast.native", "rnnfast.serving", "rnnfast.streaming")):
                    importlib.import_module(module.name)
            print(sys._is_gil_enabled())
        else:
            print("another package")"""
    done = subprocess.run([sys.executable, "-X", "gil=0", "-W", "error", "-c", code], capture_output=True, text=True)
    # With -X gil=0 nothing turns it on, but the import of a module that does not declare itself warns.
    assert done.stdout.split() == ["False"], done.stderr
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if plain.stdout.split() == ["another", "package"]:
        pytest.skip("NumPy or onnx turns the GIL on")
    assert plain.stdout.split() == ["False"]


def test_one_model_with_plans_of_ever_other_shapes():
    shapes = [(1 + k % 6, 1 + k // 6) for k in range(24)]
    other = rnnfast.load(MODEL)
    expected = [bits(other.run(feed(*shape))) for shape in shapes]
    model = rnnfast.load(MODEL, plans=3, spare_bytes=2**16)

    def work(i):
        for k in range(4 * ROUNDS):
            at = (i * 5 + k * (1 + i % 3)) % len(shapes)
            assert bits(model.run(feed(*shapes[at]))) == expected[at]
            if k % 8 == i % 8:
                assert model.memory() >= 0
                assert model.memory(feed(*shapes[-at])) > 0
                model.trim()

    at_once(work)
    assert len(model.planned.plans.kept) <= 3


def test_plans_that_fit_are_found_by_all():
    """Threads that add and reorder plans at the same time lose none of them."""
    model = rnnfast.load(MODEL, plans=THREADS)
    at_once(lambda i: [model.run(feed(1 + i, 2)) for _ in range(4 * ROUNDS)])
    assert len(model.planned.plans.kept) == THREADS


def test_initializers_that_callers_override():
    model = rnnfast.load(WITH_BIAS)
    values = [random(50 + i, 1, 6 * H) for i in range(3)]
    expected = [bits(rnnfast.load(WITH_BIAS).run({**feed(2, 3), "b": b})) for b in values]
    reference = bits(rnnfast.load(WITH_BIAS).reference(feed(2, 3)).values())

    def work(i):
        for _ in range(ROUNDS):
            assert bits(model.run({**feed(2, 3), "b": values[i % 3]})) == expected[i % 3]
            if i % 4 == 0:
                assert bits(model.reference(feed(2, 3)).values()) == reference

    at_once(work)


def test_loading_at_once():
    expected = bits(rnnfast.load(MODEL).run(feed(3, 2)))

    def work(i):
        for _ in range(3):
            assert bits(rnnfast.load(MODEL).run(feed(3, 2))) == expected

    at_once(work)


def test_streams_of_one_model():
    model = rnnfast.load(MODEL)

    def stepped(of, seed):
        stream = of.stream()
        return bits([stream.step(x=frame[None]) for frame in frames(seed)])

    expected = [stepped(rnnfast.load(MODEL), i) for i in range(THREADS)]

    def work(i):
        for _ in range(3):
            assert stepped(model, i) == expected[i]
            model.trim()

    at_once(work)


def test_one_stream_refuses_or_serves():
    """A stream that several threads use gives each step to one of them, and refuses the others."""
    counter = nn.RNN(1, 1, nonlinearity="relu", bias=False)
    one = np.ones((1, 1), np.float32)
    counter.load_state_dict({"weight_ih_l0": one, "weight_hh_l0": one})
    stream, steps, x = counter.stream(), [0] * THREADS, np.ones(1, np.float32)

    def work(i):
        for _ in range(4 * ROUNDS):
            try:
                stream.step(x)
                steps[i] += 1
            except InputError as e:
                assert "in use by another thread" in str(e)

    at_once(work)
    assert stream.step(x).item() == sum(steps) + 1


@pytest.mark.parametrize("make", [lambda: rnnfast.load(MODEL), lambda: nn.GRU(I, H, 2, rng=4)])
def test_one_pool(make):
    """Threads step, reset, copy, close and open streams of one pool."""
    alone = make()
    named = isinstance(alone, rnnfast.Model)

    def frames_of(seed):
        return [{"x": frame[None]} if named else frame[0] for frame in frames(seed)]

    def by_stream(seed):
        stream = alone.stream()
        return [np.array(stream.step(frame)) for frame in frames_of(seed)]

    expected = [bits(by_stream(i)) for i in range(THREADS)]
    pool = make().pool(2 * THREADS)

    def work(i):
        for k in range(4):
            stream, results = pool.open(), []
            for n, frame in enumerate(frames_of(i)):
                results.append(pool.step({stream: frame})[stream])
                if n % 5 == i % 5:
                    assert pool.state(stream) is not None
                    assert stream in pool.streams and 1 <= len(pool) <= 2 * THREADS
            assert bits(results) == expected[i]
            if k % 2:
                pool.reset(stream)
                assert bits([pool.step({stream: frames_of(i)[0]})[stream]]) == bits(by_stream(i)[:1])
            pool.close(stream)
            with pytest.raises(ClosedError):
                pool.step({stream: frames_of(i)[0]})

    at_once(work)
    assert len(pool) == 0
    assert [pool.open() for _ in range(2 * THREADS)]


def test_one_batcher():
    """Callers open, step and close streams and give whole sequences; each frame is counted once."""
    layer = nn.GRU(I, H, 2, rng=5)

    def by_stream(seed):
        stream = layer.stream()
        return [np.array(stream.step(frame[0])) for frame in frames(seed)]

    expected = [bits(by_stream(i)) for i in range(THREADS)]
    with rnnfast.Batcher(layer.pool(3 * THREADS), max_batch=8, max_wait=0.0005, max_queue=1000) as batcher:

        def work(i):
            for _ in range(3):
                stream = batcher.open()
                whole = batcher.submit_run(frames(i)[:, 0])
                results = [batcher.submit(stream, frame[0]) for frame in frames(i)[:10]]
                results = [future.result(END) for future in results]
                results += [batcher.submit(stream, frame[0]).result(END) for frame in frames(i)[10:]]
                assert bits(results) == expected[i]
                assert batcher.frames(stream) == ROUNDS
                assert batcher.stats()["streams"] >= 1
                assert bits(list(whole.result(END))) == expected[i]
                batcher.close(stream)

        at_once(work)
        stats = batcher.stats()
    assert stats["frames"] == 2 * 3 * THREADS * ROUNDS
    assert stats["queued"] == stats["streams"] == stats["failed"] == 0


def test_every_refusal_of_a_batcher_is_counted():
    batcher = rnnfast.Batcher(nn.GRU(I, H, rng=5).pool(THREADS), max_batch=THREADS, max_queue=3, max_wait=0.002)
    refused, served, x = [0] * THREADS, [0] * THREADS, frames(0, 1)[0, 0]

    def work(i):
        stream, futures = batcher.open(), []
        for _ in range(8 * ROUNDS):
            try:
                futures.append(batcher.submit(stream, x))
            except Overloaded:
                refused[i] += 1
        served[i] = len([future.result(END) for future in futures])

    at_once(work)
    stats = batcher.stats()
    batcher.drain()
    assert stats["overloaded"] == sum(refused)
    assert stats["frames"] == sum(served)


def test_a_batcher_that_ends_answers_everybody():
    for _ in range(4):
        batcher = rnnfast.Batcher(nn.GRU(I, H, rng=5).pool(THREADS), max_batch=4, max_wait=0.0005)
        x = frames(0, 1)[0, 0]

        def work(i, batcher=batcher, x=x):
            if i == 0:
                time.sleep(0.01)
                with batcher:
                    pass
                return
            try:
                stream = batcher.open()
                for _ in range(4 * ROUNDS):
                    batcher.submit(stream, x).result(END)
            except ClosedError:
                pass

        at_once(work)


@pytest.mark.parametrize("threads", [1, 4])
def test_one_layer(forced, threads):
    """Threads draw the weights of one layer, run it, and take gradients, each with a team of its own."""
    x = random(7, 9, 6, I)

    def outcome(layer):
        y, state, saved = layer.forward(x, training=True)
        dx, _, gradients = layer.backward(np.ones_like(y), None, saved)
        return bits([y, *(state if isinstance(state, tuple) else (state,)), dx, *gradients.values()])

    expected = outcome(nn.LSTM(I, H, 2, bidirectional=True, rng=3, threads=threads))
    for _ in range(4):
        layer = nn.LSTM(I, H, 2, bidirectional=True, rng=3, threads=threads)

        def work(i, layer=layer):
            for _ in range(3):
                assert outcome(layer) == expected
                assert bits([layer(x)[0]]) == bits([layer(x)[0]])

        at_once(work)


def test_a_budget_is_never_exceeded():
    around = Allowance(1000)
    budgets, taken = [Allowance(600, around) for _ in range(4)], [0] * THREADS

    def work(i):
        for k in range(40 * ROUNDS):
            if budgets[i % 4].take(1 + k % 7):
                assert 0 <= budgets[i % 4].nbytes <= 600 and 0 <= around.nbytes <= 1000
                budgets[i % 4].take(-(1 + k % 7))
        taken[i] = sum(budgets[i % 4].take(1) for _ in range(200))

    at_once(work)
    assert [budget.nbytes for budget in budgets] == [sum(taken[i::4]) for i in range(4)]
    assert sum(taken) == around.nbytes <= 1000
