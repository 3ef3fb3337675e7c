"""Errors leave a stream's state as it was; closed streams and those in use refuse."""

import contextlib
import threading
import time

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import Error, InputError, InputTypeError, LimitError
from tests.cases import bits
from tests.graphs import parse, random
from tests.streaming.streams import check_busy, check_closed


def test_errors_leave_the_state(denoiser, way):
    x, stream = random(0, 3, 22), denoiser.stream()
    stream.step(bands=x)
    before = stream.state
    state = before["state"]
    nan = np.full((1, 3, 32), np.nan, np.float32)
    wrong_steps = [
        (dict(bands=x[:2]), "first frame had"),
        (dict(bands=x[:, :5]), "bands"),
        (dict(), "missing"),
        (dict(bands=x.astype(np.float64)), "float"),
        (dict(bands="a"), "bands"),
        (dict(bands=x, z=x), "no input 'z'"),
        (dict(bands=x, state=state), "is a state of the stream"),
        (dict(bands=x[None]), "bands"),
    ]
    for feed, message in wrong_steps:
        with pytest.raises(Error, match=message):
            stream.step(**feed)
        with pytest.raises(Error, match=message):
            stream.step(feed)
        if message != "bands" or np.ndim(feed["bands"]) != 3:
            with pytest.raises(Error):
                stream.run(**feed)
    with pytest.raises(InputError, match="twice"):
        stream.step({"bands": x}, bands=x)
    with pytest.raises(InputTypeError, match="mapping"):
        stream.step(x)
    with pytest.raises(InputError, match="no input has frames"):
        stream.run(bands=x)
    with pytest.raises(InputError, match="first frame had"):
        stream.run(bands=random(0, 4, 2, 22))
    for wrong, message in (
        ({"state": nan[:, :2]}, "shape"),
        ({"state": nan[0]}, "shape"),
        ({"h": nan}, "expected"),
        ({}, "expected"),
        (nan, "mapping"),
        ({"state": nan.astype(np.float64)}, "double"),
    ):
        with pytest.raises(Error, match=message):
            stream.state = wrong
        if message != "shape" or wrong["state"].ndim == 2:
            with pytest.raises(Error, match=message):
                denoiser.stream(wrong)
    assert bits(stream.state.values()) == bits(before.values())
    expected = denoiser(bands=x, state=state)
    assert bits([stream.step(bands=x)]) == bits([expected.gains])


def test_first_frame_that_fails(denoiser, way):
    stream = denoiser.stream({"state": random(0, 1, 2, 32)})
    with pytest.raises(Error, match="initial_h"):
        stream.step(bands=random(0, 3, 22))
    with pytest.raises(Error, match="out"):
        stream.step(bands=random(0, 2, 22), out=random(0, 3, 22))
    assert bits(stream.state.values()) == bits([random(0, 1, 2, 32)])
    assert stream.step(bands=random(0, 2, 22)).shape == (2, 22)


def test_states_that_change_their_shape():
    model = rnnfast.load(
        parse(
            "g (float[b,3] x, float[b,n] h) => (float[b,3] y, float[b,m] hn) "
            "{ hn = Concat <axis = 1> (h, x)  y = Neg (x) }"
        )
    )
    stream = model.stream({"h": np.zeros((1, 2), np.float32)})
    with pytest.raises(InputError, match=r"'hn' is .* shape \(1, 5\), but the state 'h' .* \(1, 2\)"):
        stream.step(x=random(0, 1, 3))
    assert stream.state["h"].shape == (1, 2)


def test_fixed_inputs(model):
    rate = np.array(16000)
    stream = model.stream(rate=rate)
    before = stream.step(x=random(0, 2, 3))
    rate[...] = 8000  # it was copied
    stream.reset()
    assert bits([stream.step(x=random(0, 2, 3))]) == bits([before])
    for wrong, message in ((dict(z=1), "no input 'z'"), (dict(s=1), "is a state"), (dict(rate=1.5), "rate")):
        with pytest.raises(Error, match=message):
            model.stream(**wrong)
    with pytest.raises(InputError, match="is fixed"):
        stream.step(x=random(0, 2, 3), rate=16000)
    with pytest.raises(InputError, match="different numbers of frames"):
        model.stream().run(x=random(0, 4, 2, 3), rate=np.full(3, 16000))


def test_memory_is_limited(denoiser, way):
    with pytest.raises(LimitError, match="fewer"):
        denoiser.stream().run(bands=np.broadcast_to(random(0, 1, 22), (2**40, 1, 22)))


def test_copies_of_frames_are_limited(denoiser, monkeypatch):
    monkeypatch.setattr(denoiser, "limits", rnnfast.Limits(bytes_of_a_call=None))
    with pytest.raises(LimitError, match="no memory for contiguous frames"):
        denoiser.stream().run(bands=np.broadcast_to(np.float32(0), (2**40, 1, 22)))


def test_closed_and_busy(denoiser, way):
    step, frames = {"bands": random(0, 1, 22)}, {"bands": random(0, 4, 1, 22)}
    check_closed(denoiser.stream(), step, frames)
    check_busy(denoiser.stream(), step, frames)


def test_one_thread_at_a_time(denoiser):
    """While one thread runs a long loop without the GIL, another is refused."""
    stream, refused = denoiser.stream(), []
    x = random(0, 1, 1, 22)
    frames = np.broadcast_to(x, (100_000, 1, 22))

    def run():
        end = time.monotonic() + 20
        while not refused and time.monotonic() < end:
            with contextlib.suppress(InputError):  # The other thread was first.
                stream.run(bands=frames)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        try:
            stream.step(bands=x[0])
        except InputError as e:
            refused.append(str(e))
    thread.join()
    assert refused and "in use by another thread" in refused[0]
    assert stream.step(bands=x[0]).shape == (1, 22)


def test_streams_in_threads(denoiser):
    inputs = [random(seed, 300, 1, 22) for seed in range(4)]
    expected = [denoiser.stream().run(bands=x) for x in inputs]
    results = [None] * len(inputs)

    def work(i):
        stream = denoiser.stream()
        results[i] = np.stack([stream.step(bands=frame) for frame in inputs[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bits(results) == bits(expected)
