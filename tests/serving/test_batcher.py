"""The Batcher: every frame gets the bits of its stream alone, in order, whatever happens to others."""

import asyncio
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import ClosedError, DeadlineError, InputError, InputTypeError, Overloaded

INPUTS, HIDDEN = 11, 23


def layer():
    return nn.GRU(INPUTS, HIDDEN, num_layers=2, rng=5)


def frames(seed, count):
    return np.random.default_rng(seed).standard_normal((count, INPUTS)).astype(np.float32)


def alone(x, of=None):
    stream = (of or layer()).stream()
    return [stream.step(frame) for frame in x]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


class Held:
    """A pool whose steps wait until they are let go."""

    def __init__(self, pool, monkeypatch):
        self.entered, self.go = threading.Event(), threading.Event()
        step = pool.step_validated

        def held(*args):
            self.entered.set()
            assert self.go.wait(20)
            return step(*args)

        monkeypatch.setattr(pool, "step_validated", held)


def test_import_alone():
    for name in ("Batcher", "Stream", "nn", "load"):
        subprocess.run([sys.executable, "-c", f"from rnnfast import {name}"], check=True)


def test_asyncio():
    """Many microphones, each awaiting its replies, at their own pace."""

    async def microphone(batcher, seed):
        rng = np.random.default_rng(seed)
        stream, x, y = batcher.open(), frames(seed, 12), []
        for frame in x:
            await asyncio.sleep(rng.uniform(0, 0.004))
            y.append(await batcher.step(stream, frame))
        assert batcher.frames(stream) == 12
        batcher.close(stream)
        return same(y, alone(x))

    async def main():
        with rnnfast.Batcher(layer().pool(70), max_batch=16, max_wait=0.001) as batcher:
            assert all(await asyncio.gather(*(microphone(batcher, seed) for seed in range(70))))
            stats = batcher.stats()
        assert stats["frames"] == 70 * 12 == stats["batch_sizes"]["sum"]
        assert stats["streams"] == stats["queued"] == stats["failed"] == 0
        assert 1 < stats["mean_batch"] <= 16
        assert stats["queue_seconds"]["count"] == 70 * 12
        assert len(stats["queue_seconds"]["counts"]) == len(stats["queue_seconds"]["bounds"]) + 1

    asyncio.run(main())


def test_threads():
    batcher = rnnfast.Batcher(layer().pool(40), max_batch=7, max_wait=0.0005, max_queue=400)
    wrong = []

    def work(first):
        streams = [batcher.open() for _ in range(8)]
        xs = [frames(first + i, 9) for i in range(8)]
        futures = [[] for _ in range(8)]
        for t in range(9):
            for i in range(8):
                futures[i].append(batcher.submit(streams[i], xs[i][t]))
        for x, of_stream in zip(xs, futures):
            if not same([f.result(20) for f in of_stream], alone(x)):
                wrong.append(first)
        for stream in streams:
            batcher.close(stream)

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.drain()
    assert not wrong and batcher.stats()["frames"] == 5 * 8 * 9


def test_of_a_model(tmp_path):
    net = layer()
    net.save(tmp_path / "gru.onnx", states=True)
    model = rnnfast.load(tmp_path / "gru.onnx")
    names = [v.name for v in model.inputs]
    x = frames(3, 4)[:, None, None]
    with rnnfast.Batcher(model.pool(5)) as batcher:
        streams = [batcher.open() for _ in range(3)]
        futures = [[batcher.submit(stream, frame) for frame in x] for stream in streams]
        one = model.stream()
        expected = [one.step({names[0]: frame}) for frame in x]
        for of_stream in futures:
            assert same([f.result(20) for f in of_stream], expected)


def test_order(monkeypatch):
    """Frames of one stream that wait together run one after the other."""
    pool = layer().pool(2)
    held = Held(pool, monkeypatch)
    with rnnfast.Batcher(pool, max_wait=0) as batcher:
        a, b, x = batcher.open(), batcher.open(), frames(0, 6)
        futures = [batcher.submit(a, frame) for frame in x] + [batcher.submit(b, x[0])]
        held.go.set()
        y = [f.result(20) for f in futures]
    assert same(y[:6], alone(x)) and same(y[6:], alone(x[:1]))


def test_error_of_one():
    """A frame that fails within a batch fails alone, and its stream is as it was."""

    def net():
        return nn.Sequential(nn.Embedding(10, 4, rng=1), nn.GRU(4, 5, rng=2))

    with rnnfast.Batcher(net().pool(20), max_batch=20, max_wait=5) as batcher:
        streams = [batcher.open() for _ in range(20)]
        for word in (3, 7):
            words = [np.array(99 if (i, word) == (13, 3) else word) for i in range(20)]
            futures = [batcher.submit(stream, w) for stream, w in zip(streams, words)]
            with pytest.raises(InputError, match="99") if word == 3 else pytest.MonkeyPatch.context():
                futures[13].result(20)
            others = [f.result(20) for i, f in enumerate(futures) if i != 13]
            assert len(others) == 19
        assert batcher.frames(streams[13]) == 1 and batcher.frames(streams[0]) == 2
        assert np.array_equal(futures[13].result(), net().stream().step(np.array(7)))
        assert same([others[0]], alone([np.array(3), np.array(7)], net())[1:])
        assert batcher.stats()["failed"] == 1


def test_bad_frames():
    """Bad frames are refused at once, and change nothing."""
    with rnnfast.Batcher(layer().pool(3), max_wait=0) as batcher:
        stream, x = batcher.open(), frames(1, 3)
        assert np.array_equal(batcher.submit(stream, x[0]).result(20), alone(x)[0])
        for bad in (x[0, :5], x[:2], x[0].astype(int), "abc", None):
            with pytest.raises(rnnfast.Error):
                batcher.submit(stream, bad).result(20)
        with pytest.raises(ClosedError, match="stream 77 is not open"):
            batcher.submit(77, x[0])
        assert same([batcher.submit(stream, frame).result(20) for frame in x[1:]], alone(x)[1:])
        assert batcher.frames(stream) == 3


def test_overloaded(monkeypatch):
    pool = layer().pool(4)
    held = Held(pool, monkeypatch)
    with rnnfast.Batcher(pool, max_batch=2, max_wait=0, max_queue=5) as batcher:
        stream, x = batcher.open(), frames(2, 20)
        taken = [batcher.submit(stream, x[0])]
        assert held.entered.wait(20)
        taken += [batcher.submit(stream, frame) for frame in x[1:6]]
        for _ in range(3):
            with pytest.raises(Overloaded, match="5 frames wait already, no more than 5 may"):
                batcher.submit(stream, x[6])
        held.go.set()
        assert same([f.result(20) for f in taken], alone(x[:6]))
        taken = batcher.submit(stream, x[6])
        assert np.array_equal(taken.result(20), alone(x[:7])[6])
        assert batcher.stats()["overloaded"] == 3 and batcher.stats()["queued"] == 0


def test_cancelled(monkeypatch):
    """Half of the calls are cancelled while they wait: their streams are as they were, the others do not notice."""
    pool = layer().pool(30)
    held = Held(pool, monkeypatch)

    async def main():
        batcher = rnnfast.Batcher(pool, max_batch=30, max_wait=0)
        streams, x, y = [batcher.open() for _ in range(30)], frames(7, 3), []
        first = batcher.step(streams[0], x[0])
        await asyncio.to_thread(held.entered.wait, 20)
        calls = [batcher.step(stream, x[0]) for stream in streams[1:]]
        for call in calls[::2]:
            call.cancel()
        held.go.set()
        await first
        await asyncio.gather(*calls[1::2])
        for stream, call in zip(streams[1:], calls):
            assert batcher.frames(stream) == (0 if call.cancelled() else 1)
            y.append((stream, [await batcher.step(stream, frame) for frame in x[batcher.frames(stream) :]]))
        for _, of_stream in y:
            assert same(of_stream, alone(x)[3 - len(of_stream) :])
        assert batcher.stats()["cancelled"] == 15
        await asyncio.to_thread(batcher.drain)

    asyncio.run(main())


def test_cancelled_while_it_runs(monkeypatch):
    """The frame is taken: `frames` says so, and the next one follows it."""
    pool = layer().pool(1)
    held = Held(pool, monkeypatch)

    async def main():
        with rnnfast.Batcher(pool, max_wait=0) as batcher:
            stream, x = batcher.open(), frames(4, 2)
            call = batcher.step(stream, x[0])
            await asyncio.to_thread(held.entered.wait, 20)
            call.cancel()
            held.go.set()
            assert np.array_equal(await batcher.step(stream, x[1]), alone(x)[1])
            assert batcher.frames(stream) == 2 and call.cancelled()

    asyncio.run(main())


def test_deadline(monkeypatch):
    pool = layer().pool(2)
    held = Held(pool, monkeypatch)
    with rnnfast.Batcher(pool, max_wait=0) as batcher:
        a, b, x = batcher.open(), batcher.open(), frames(6, 2)
        first = batcher.submit(a, x[0])
        assert held.entered.wait(20)
        late, patient = batcher.submit(b, x[0], timeout=0.001), batcher.submit(b, x[1], timeout=60)
        time.sleep(0.01)
        held.go.set()
        with pytest.raises(DeadlineError, match=rf"a frame of stream {b} waited .* it was not taken"):
            late.result(20)
        assert isinstance(late.exception(), TimeoutError)
        assert np.array_equal(patient.result(20), alone(x[1:])[0]) and first.result(20) is not None
        assert batcher.frames(b) == 1 and batcher.stats()["expired"] == 1


def test_idle():
    """Streams without frames are closed; whoever asked is told, and so is the next call."""
    pool = layer().pool(3)

    async def main():
        told, x = asyncio.Queue(), frames(8, 40)
        with rnnfast.Batcher(pool, max_wait=0, idle=0.4) as batcher:
            quiet, busy = batcher.open(on_close=told.put_nowait), batcher.open()
            y = []
            for frame in x:
                y.append(await batcher.step(busy, frame))
                await asyncio.sleep(0.015)
            assert await asyncio.wait_for(told.get(), 20) == quiet
            assert same(y, alone(x))
            with pytest.raises(ClosedError, match=f"stream {quiet} is not open"):
                await batcher.step(quiet, x[0])
            assert batcher.stats()["idle"] == 1 and len(pool) == 1

    asyncio.run(main())
    assert len(pool) == 0


def test_close(monkeypatch):
    """Frames that wait of a closed stream fail; its place is free for another."""
    pool = layer().pool(2)
    held = Held(pool, monkeypatch)
    with rnnfast.Batcher(pool, max_wait=0) as batcher:
        a, b, x = batcher.open(), batcher.open(), frames(9, 2)
        running = batcher.submit(a, x[0])
        assert held.entered.wait(20)
        waiting = batcher.submit(b, x[0])
        batcher.close(b)
        c = batcher.open()
        follows = batcher.submit(c, x[1])
        held.go.set()
        with pytest.raises(ClosedError, match=f"stream {b} was closed: the frame was not taken"):
            waiting.result(20)
        assert c != b and same([running.result(20), follows.result(20)], [alone(x)[0], alone(x[1:])[0]])


def test_hurry():
    """A frame that may not wait as long as others does not, and takes those with it that are there."""
    with rnnfast.Batcher(layer().pool(9), max_batch=9, max_wait=30) as batcher:
        streams, x = [batcher.open() for _ in range(9)], frames(10, 2)
        waits = batcher.submit(streams[0], x[0])
        time.sleep(0.05)  # the thread sleeps by then
        hurried = batcher.submit(streams[1], x[0], timeout=5)
        assert same([hurried.result(5), waits.result(5)], alone(x[:1]) * 2)
        waits = [batcher.submit(streams[0], frame) for frame in x]
        time.sleep(0.05)
        behind = batcher.submit(streams[0], x[0], timeout=5)  # takes those with it that it stands behind
        assert same([*[f.result(5) for f in waits], behind.result(5)], alone(x[[0, 0, 1, 0]])[1:])
        for timeout in (-1, "1", float("nan"), 10**400):
            with pytest.raises(InputError, match=f"timeout is {timeout!r}, expected seconds"):
                batcher.submit(streams[0], x[1], timeout)
        assert batcher.frames(streams[0]) == 4 and batcher.stats()["queued"] == 0


def test_drain():
    """Waiting frames are finished, later calls are refused, the thread ends and the pool is empty."""
    before, pool = threading.active_count(), layer().pool(50)
    batcher = rnnfast.Batcher(pool, max_batch=4, max_wait=10)
    streams, x = [batcher.open() for _ in range(50)], frames(10, 3)
    futures = [batcher.submit(stream, frame) for frame in x for stream in streams[:9]]
    batcher.drain()
    assert same([f.result(0) for f in futures[::9]], alone(x))
    for call in (lambda: batcher.submit(streams[0], x[0]), batcher.open):
        with pytest.raises(ClosedError):
            call()
    assert len(pool) == 0 and threading.active_count() == before
    batcher.drain()


def test_loop_that_is_gone(monkeypatch):
    """An event loop that ends while its frames run disturbs nobody."""
    pool = layer().pool(2)
    held = Held(pool, monkeypatch)
    with rnnfast.Batcher(pool, max_wait=0) as batcher:
        a, b, x = batcher.open(), batcher.open(), frames(11, 2)

        async def gone():
            batcher.step(a, x[0])
            await asyncio.to_thread(held.entered.wait, 20)

        asyncio.run(gone())
        follows = [batcher.submit(b, frame) for frame in x]
        held.go.set()
        assert same([f.result(20) for f in follows], alone(x))


def test_defect(monkeypatch):
    """Whatever ends the thread, nobody waits for ever."""
    batcher = rnnfast.Batcher(layer().pool(3), max_batch=2, max_wait=10)
    a, b, x = batcher.open(), batcher.open(), frames(12, 2)
    waiting = batcher.submit(a, x[0])
    monkeypatch.setattr(batcher._worker, "_take", None)
    other = batcher.submit(b, x[1])
    for future in (waiting, other):
        with pytest.raises(ClosedError, match="the batcher ended: TypeError"):
            future.result(20)
    with pytest.raises(ClosedError, match="the batcher is closed"):
        batcher.submit(a, x[1])
    batcher.drain()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_batch": 0}, InputError, "max_batch is 0, expected an int of at least 1"),
        ({"max_batch": 2.0}, InputError, "max_batch is 2.0"),
        ({"max_queue": -1}, InputError, "max_queue is -1"),
        ({"max_wait": -0.1}, InputError, "max_wait is -0.1, expected seconds"),
        ({"max_wait": "1"}, InputError, "max_wait is '1'"),
        ({"idle": float("nan")}, InputError, "idle is nan"),
        ({"idle": 0}, InputError, "idle is 0, expected seconds"),
        ({"max_wait": None}, InputError, "max_wait is None, expected seconds"),
        ({"pool": 3}, InputTypeError, "got a int, expected a pool"),
    ],
)
def test_bad_arguments(arguments, error, message):
    before = threading.active_count()
    with pytest.raises(error, match=message):
        rnnfast.Batcher(**{"pool": layer().pool(1)} | arguments)
    assert threading.active_count() == before


def test_sequences():
    """Whole sequences of all lengths join what runs: bits of a call of the layer, and the short ones are back first."""
    net = nn.Sequential(
        nn.Linear(INPUTS, 9, rng=1), nn.LSTM(9, HIDDEN, num_layers=2, rng=5), nn.Linear(HIDDEN, 3, rng=2)
    )
    lengths = np.random.default_rng(0).integers(1, 90, 60)
    lengths[0] = 3000
    xs, order = [frames(k, n) for k, n in enumerate(lengths)], []

    async def one(batcher, k):
        await asyncio.sleep(k * 1e-4)
        y = await batcher.run(xs[k])
        order.append(k)
        return y

    async def main():
        with rnnfast.Batcher(net, max_batch=8) as batcher:
            ys = await asyncio.gather(*(one(batcher, k) for k in range(60)))
            assert batcher.stats()["frames"] == lengths.sum() and batcher.stats()["mean_batch"] > 1
        return ys

    ys = asyncio.run(main())  # compared when all are there: the event loop would stand still meanwhile
    assert all(np.array_equal(y, net.forward(x)[0]) for x, y in zip(xs, ys))
    assert order[-1] == 0


def test_sequences_of_threads_beside_streams():
    net = layer()
    with rnnfast.Batcher(net.pool(20), max_batch=10, max_wait=0) as batcher:
        stream, x = batcher.open(), frames(1, 30)
        long, cancelled = batcher.submit_run(frames(2, 4000)), batcher.submit_run(frames(3, 4000))
        cancelled.cancel()
        y = [batcher.submit(stream, frame) for frame in x]
        assert same([f.result(20) for f in y], alone(x))
        with pytest.raises(InputError, match="x"):
            batcher.submit_run(frames(2, 3)[:, :4]).result(20)
        assert np.array_equal(long.result(20), np.stack(alone(frames(2, 4000))))
    with pytest.raises(InputError, match="a sequence is"):
        rnnfast.Batcher(net).submit_run(np.zeros((0, INPUTS), np.float32))


def test_sequences_without_a_place():
    """While streams have all places they wait, without work, until their deadline or the end."""
    batcher, x = rnnfast.Batcher(layer().pool(2), max_wait=0), frames(1, 5)
    streams = [batcher.open(), batcher.open()]
    late = batcher.submit_run(x, timeout=0.05)
    with pytest.raises(DeadlineError, match="a sequence waited"):
        late.result(20)
    waits, begun = batcher.submit_run(x), time.process_time()
    time.sleep(0.2)
    assert time.process_time() - begun < 0.1 and not waits.done()
    batcher.close(streams[0])
    assert np.array_equal(waits.result(20), np.stack(alone(x)))
    batcher.open()
    waits, cancelled = batcher.submit_run(x), batcher.submit_run(x)
    assert cancelled.cancel()
    batcher.drain()
    with pytest.raises(ClosedError, match="all streams of the pool are open"):
        waits.result(0)
    assert batcher.stats()["queued"] == 0


def test_sequences_that_are_wrong_run_with_none_that_are_right(monkeypatch):
    pool = layer().pool(8)
    held = Held(pool, monkeypatch)
    with rnnfast.Batcher(pool, max_wait=0) as batcher:
        first, x = batcher.submit(batcher.open(), frames(0, 1)[0]), frames(1, 40)
        assert held.entered.wait(20)
        wrong = [batcher.submit_run(bad) for bad in (x.astype(int), x[:, :1], np.arange(40))]
        right = [batcher.submit_run(x[:n]) for n in (40, 7)]
        held.go.set()
        for future in wrong:
            with pytest.raises(rnnfast.Error):
                future.result(20)
        assert all(np.array_equal(f.result(20), np.stack(alone(x[:n]))) for f, n in zip(right, (40, 7)))
        assert first.result(20) is not None and batcher.stats()["failed"] == 3


def test_callback_that_exits():
    """Frames of the same batch have their results all the same."""
    with rnnfast.Batcher(layer().pool(2), max_batch=2, max_wait=5) as batcher:
        a, b, x = batcher.open(), batcher.open(), frames(2, 2)
        for frame in x:
            futures = [batcher.submit(a, frame)]
            futures[0].add_done_callback(lambda future: sys.exit(3))
            futures.append(batcher.submit(b, frame))
            assert same([f.result(20) for f in futures][:1], [futures[1].result(20)])


def test_states_are_copies():
    with rnnfast.Batcher(layer().pool(1), max_wait=0) as batcher:
        stream, x = batcher.open(), frames(3, 2)
        batcher.submit(stream, x[0]).result(20)
        state = batcher.state(stream)
        before = state.copy()
        for _ in range(2):
            batcher.submit(stream, x[1]).result(20)
        assert np.array_equal(state, before)


def test_sequences_of_a_model(tmp_path):
    layer().save(tmp_path / "gru.onnx", states=True)
    model, x = rnnfast.load(tmp_path / "gru.onnx"), frames(3, 40)
    with rnnfast.Batcher(model, max_batch=4) as batcher:
        futures = [batcher.submit_run(x[:n, None]) for n in (40, 7, 1, 22, 9, 30)]
        for n, future in zip((40, 7, 1, 22, 9, 30), futures):
            assert np.array_equal(future.result(20)[:, 0], np.stack(alone(x[:n])))


# ------------------------------------------------------------------------------------------------- ways to call
def test_frames_with_and_without_the_first_axis_of_size_1():
    """For layers and models, by position, mapping and keyword, before and after the first frame settles the shapes."""
    x = frames(3, 6)
    want = alone(x)
    for first in range(6):
        with rnnfast.Batcher(layer()) as batcher:
            stream, turn = batcher.open(), x[first:]
            ways = (
                lambda s, f: batcher.submit(s, f),
                lambda s, f: batcher.submit(s, f[None]),
                lambda s, f: batcher.submit(s, x=f),
                lambda s, f: batcher.submit(s, x=f[None], timeout=20),
                lambda s, f: batcher.submit(s, {"x": f.tolist()}),
                lambda s, f: batcher.submit(s, [f.tolist()]),
            )
            results = [ways[(first + i) % 6](stream, frame).result(20) for i, frame in enumerate(turn)]
            assert same(results, alone(turn))
    assert want[0].ndim == 1


def test_frames_of_models_with_and_without_the_first_axis(tmp_path):
    cell = nn.GRUCell(5, 7, rng=1)
    cell.save(tmp_path / "net.onnx", states=True)
    model, x = rnnfast.load(tmp_path / "net.onnx"), frames(4, 5)[:, :5]
    one = model.stream()
    want = [one.step(x=frame[None]) for frame in x]
    ways = (
        lambda b, s, f: b.submit(s, f),
        lambda b, s, f: b.submit(s, f[None]),
        lambda b, s, f: b.submit(s, x=f),
        lambda b, s, f: b.submit(s, {"x": f[None].tolist()}),
        lambda b, s, f: b.submit(s, x=f.tolist()),
    )
    for first in range(5):
        with rnnfast.Batcher(model) as batcher:
            stream = batcher.open()
            got = [ways[(first + i) % 5](batcher, stream, frame).result(20) for i, frame in enumerate(x)]
        assert same(got, want) and got[0].shape == (1, 7)


def test_frames_of_several_axes_too_many_are_refused():
    with rnnfast.Batcher(layer()) as batcher:
        stream, x = batcher.open(), frames(5, 2)
        for bad in (x[None], x, x[:, None], x[0, 0], x[:0]):
            with pytest.raises(rnnfast.Error):
                batcher.submit(stream, bad).result(20)
        with pytest.raises(InputError, match="input 'x' is given twice"):
            batcher.submit(stream, {"x": x[0]}, x=x[0])
        with pytest.raises(InputTypeError, match="expected a mapping by name"):
            batcher.submit(stream, x[0], x=x[0])
        with pytest.raises(InputError, match="inputs are .'z'., expected 'x'"):
            batcher.submit(stream, z=x[0])
        assert batcher.frames(stream) == 0


def test_frames_by_keyword_from_asyncio():
    async def main():
        with rnnfast.Batcher(layer()) as batcher:
            stream = batcher.open()
            return [await batcher.step(stream, x=frame) for frame in x]

    x = frames(6, 3)
    assert same(asyncio.run(main()), alone(x))


def test_outside_of_asyncio():
    with rnnfast.Batcher(layer()) as batcher:
        stream, x = batcher.open(), frames(7, 2)
        with pytest.raises(InputError, match="step is for asyncio, and no event loop runs here: submit returns"):
            batcher.step(stream, x[0])
        with pytest.raises(InputError, match="run is for asyncio, and no event loop runs here: submit_run returns"):
            batcher.run(x)
        assert same([batcher.submit(stream, frame).result(20) for frame in x], alone(x))


@pytest.mark.parametrize("end", ["drain", "leave", "both"])
def test_closing_a_stream_after_the_batcher(end):
    batcher = rnnfast.Batcher(layer().pool(3))
    stream, closed = batcher.open(), batcher.open()
    batcher.close(closed)
    with pytest.raises(ClosedError, match="is not open"):
        batcher.close(closed)
    if end != "drain":
        with batcher:
            pass
    if end != "leave":
        batcher.drain()
    for one in (stream, stream, closed):
        assert batcher.close(one) is None
    with pytest.raises(ClosedError):
        batcher.state(stream)
