"""The rules of sequences: their first and last requests, their state, what fails and what is closed."""

import asyncio
import contextlib
import threading

import numpy as np
import pytest

from rnnfast.errors import DeadlineError, InputError, InputTypeError, LimitError, Overloaded, UnsupportedError
from rnnfast.server.faults import UnavailableError, UnknownSequenceError
from rnnfast.server.requests import InferRequest, Output
from rnnfast.server.sequences import Streams, shapes_of
from rnnfast.server.served_model import ServedModel
from rnnfast.server.settings import ModelSettings
from tests.graphs import parse
from tests.paths import MODELS
from tests.server.client import BANDS, alone, frames


class Client:
    """Sends requests to a ServedModel."""

    def __init__(self, model, sequence):
        self.model, self.sequence = model, sequence

    async def send(self, x, start=False, end=False, inputs={}, outputs=(), **parameters):
        request = InferRequest(
            self.model.name,
            "",
            "",
            {"bands": x, **inputs},
            [Output(name, None) for name in outputs],
            {"sequence_id": self.sequence, "sequence_start": start, "sequence_end": end, **parameters},
        )
        return (await self.model.infer(request)).outputs


def serve(test, name="denoiser", **settings):
    """Run `test(model)` with a ServedModel, in an event loop."""

    async def run():
        model = ServedModel(name, "1", str(MODELS / f"{name}.onnx"), ModelSettings(**settings))
        try:
            return await test(model)
        finally:
            model.close()

    return asyncio.run(run())


@contextlib.contextmanager
def held(batcher):
    """Let no batch begin until the block ends."""
    with batcher._worker.turn:
        yield


def test_many_sequences_have_the_bits_of_streams_alone():
    async def test(model):
        async def client(i):
            x = frames(i, 3 + i % 7)
            c = Client(model, i + 1 if i % 2 else f"sequence {i}")
            got = [await c.send(f, t == 0, t == len(x) - 1) for t, f in enumerate(x)]
            return all(np.array_equal(g["gains"], e) for g, e in zip(got, alone(x)))

        assert all(await asyncio.gather(*(client(i) for i in range(40))))
        assert len(model.sequences) == 0
        assert model.statistics.opened == model.statistics.ended == 40
        assert model.sequences.batchers[0].stats()["mean_batch"] > 1

    serve(test)


def test_requests_without_start_are_refused_before_and_after_a_sequence():
    async def test(model):
        c, x = Client(model, 5), frames(0, 3)
        with pytest.raises(UnknownSequenceError, match="sequence 5 to model 'denoiser' must specify the START flag"):
            await c.send(x[0])
        await c.send(x[0], start=True, end=True)
        with pytest.raises(UnknownSequenceError, match="START flag on the first request of the sequence: it was ended"):
            await c.send(x[1])
        with pytest.raises(UnknownSequenceError):
            await c.send(x[1], end=True)
        assert len(model.sequences) == 0

    serve(test)


def test_a_start_on_a_live_sequence_begins_anew():
    async def test(model):
        c, x = Client(model, 5), frames(0, 6)
        for t in range(3):
            await c.send(x[t], t == 0)
        got = [(await c.send(x[t], t == 3))["gains"] for t in range(3, 6)]
        assert all(np.array_equal(g, e) for g, e in zip(got, alone(x[3:])))
        assert len(model.sequences) == 1 and model.statistics.opened == 2

    serve(test)


def test_requests_of_one_sequence_that_come_at_once_run_in_order():
    async def test(model):
        c, x = Client(model, "a"), frames(0, 30)
        got = await asyncio.gather(*(c.send(f, t == 0, t == 29) for t, f in enumerate(x)))
        assert all(np.array_equal(g["gains"], e) for g, e in zip(got, alone(x)))

    serve(test)


def test_too_many_requests_of_one_sequence_at_once_are_refused():
    async def test(model):
        c, x = Client(model, "a"), frames(0, 100)
        got = await asyncio.gather(*(c.send(f, t == 0) for t, f in enumerate(x)), return_exceptions=True)
        taken = [g for g in got if isinstance(g, dict)]
        assert all(isinstance(g, (dict, Overloaded)) for g in got) and 0 < len(taken) < 100
        assert all(np.array_equal(g["gains"], e) for g, e in zip(taken, alone(x)))

    serve(test)


def test_a_request_that_fails_leaves_its_sequence_as_it_was():
    async def test(model):
        c, x = Client(model, "a"), frames(0, 4)
        got = [await c.send(x[0], start=True)]
        for bad in (x[1][:, :5], x[1].astype(np.float64)):
            for flags in ({}, {"end": True}, {"start": True}):
                with pytest.raises((InputError, InputTypeError), match="bands"):
                    await c.send(bad, **flags)
        with pytest.raises(InputError, match="unexpected inference output 'nope' for model 'denoiser'"):
            await c.send(x[1], outputs=["nope"])
        with pytest.raises(InputError, match="unexpected inference input 'nope' for model 'denoiser'"):
            await c.send(x[1], inputs={"nope": x[1]})
        got += [await c.send(f) for f in x[1:]]
        assert all(np.array_equal(g["gains"], e) for g, e in zip(got, alone(x)))

    serve(test)


def test_a_first_request_that_fails_begins_nothing():
    async def test(model):
        c, x = Client(model, "a"), frames(0, 2)
        with pytest.raises(InputError, match="bands"):
            await c.send(x[0][:, :5], start=True)
        with pytest.raises(UnknownSequenceError):
            await c.send(x[0])
        assert len(model.sequences) == 0

    serve(test)


def test_a_state_moves_a_sequence_to_another_server():
    async def test(one):
        async def continued(two):
            c = Client(two, "a")
            got = await c.send(x[3], start=True, inputs={"state": state})
            with pytest.raises(InputError, match="input 'state' is a state, which only"):
                await c.send(x[4], inputs={"state": state})
            return [got, await c.send(x[4])]

        c, x = Client(one, "a"), frames(0, 5)
        got = [await c.send(x[t], t == 0) for t in range(2)]
        got.append(await c.send(x[2], outputs=["gains", "new_state"]))
        assert list(got[-1]) == ["gains", "new_state"]
        state = got[-1]["new_state"]
        two = ServedModel("denoiser", "1", str(MODELS / "denoiser.onnx"), ModelSettings())
        got += await continued(two)
        two.close()
        assert all(np.array_equal(g["gains"], e) for g, e in zip(got, alone(x)))
        with pytest.raises(InputError, match="state"):
            await Client(one, "b").send(x[0], start=True, inputs={"state": state[:, :, :5]})

    serve(test)


def test_the_states_of_a_server_are_taken_up_by_the_next():
    async def test(one):
        x = frames(0, 6)
        got = {}
        for i in range(1, 6):
            got[i] = [await Client(one, i).send(x[t], t == 0) for t in range(i)]
        two = ServedModel("denoiser", "1", str(MODELS / "denoiser.onnx"), ModelSettings())
        two.sequences.restore(one.sequences.states())
        for i, results in got.items():
            results += [await Client(two, i).send(x[t]) for t in range(i, 6)]
            assert all(np.array_equal(g["gains"], e) for g, e in zip(results, alone(x)))
        with pytest.raises(UnknownSequenceError):
            await Client(two, 6).send(x[0])
        two.close()

    serve(test)


def test_idle_sequences_are_closed_and_their_next_request_is_told_so():
    async def test(model):
        x = frames(0, 3)
        for id in ("a", "b"):
            await Client(model, id).send(x[0], start=True)
        model.sequences._live["a"].used -= 60
        model.sequences.close_idle()
        with pytest.raises(UnknownSequenceError, match="it was closed after 60 s without a request"):
            await Client(model, "a").send(x[1])
        assert np.array_equal((await Client(model, "b").send(x[1]))["gains"], alone(x)[1])
        assert model.statistics.idled == 1

    serve(test)


def test_no_more_sequences_than_the_settings_allow():
    async def test(model):
        x = frames(0, 2)
        for i in (1, 2):
            await Client(model, i).send(x[0], start=True)
        with pytest.raises(Overloaded, match="all 2 sequences are live"):
            await Client(model, 3).send(x[0], start=True)
        await Client(model, 1).send(x[1], start=True)  # one that is live may begin anew
        await Client(model, 1).send(x[1], end=True)
        await Client(model, 3).send(x[0], start=True)

    serve(test, max_sequences=2)


def test_a_server_that_ends_takes_no_new_sequences():
    async def test(model):
        x = frames(0, 2)
        await Client(model, 1).send(x[0], start=True)
        model.sequences.draining = True
        with pytest.raises(UnavailableError, match="takes no new sequences"):
            await Client(model, 2).send(x[0], start=True)
        assert np.array_equal((await Client(model, 1).send(x[1], end=True))["gains"], alone(x)[1])

    serve(test)


def test_clients_that_go_away_leave_nothing_behind():
    async def test(model):
        x = frames(0, 2)
        tasks = [asyncio.ensure_future(Client(model, i + 1).send(x[0], start=True)) for i in range(50)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(model.sequences) == sum(not task.cancelled() for task in tasks)

    serve(test)


def test_a_model_without_states_has_no_sequences():
    async def test(model):
        with pytest.raises(UnsupportedError, match="model 'digits' has no sequences"):
            request = InferRequest(
                "digits",
                "",
                "",
                {"x": np.zeros((1, 3, 28), np.float32)},
                [],
                {"sequence_id": 1, "sequence_start": True},
            )
            await model.infer(request)

    serve(test, "digits")


def test_a_call_with_its_states_needs_no_sequence():
    async def test(model):
        x, state = frames(0, 2)[:, 0], np.zeros((1, 2, 32), np.float32)
        request = InferRequest("denoiser", "", "", {"bands": x, "state": state}, [], {})
        outputs = (await model.infer(request)).outputs
        expected = model.model(bands=x, state=state)
        assert list(outputs) == ["gains", "new_state"]
        assert all(np.array_equal(outputs[name], expected[name]) for name in outputs)
        with pytest.raises(InputError, match="must specify a non-zero or non-empty correlation ID.*'state' is missing"):
            await model.infer(InferRequest("denoiser", "", "", {"bands": x}, [], {}))
        with pytest.raises(InputError, match="correlation ID"):
            await model.infer(InferRequest("denoiser", "", "", {"bands": x}, [], {"sequence_start": True}))

    serve(test)


@pytest.mark.parametrize("pools", (8, 1, 0))
def test_chunks_of_any_length_have_the_bits_of_the_whole(pools, monkeypatch):
    """Frames of the first shapes run in pools, others as calls; a sequence may change from one to the other."""
    monkeypatch.setattr("rnnfast.server.sequences.MAX_POOLS", pools)

    async def test(model):
        async def client(i):
            rng = np.random.default_rng(i)
            x = rng.standard_normal((1, 40, 1), dtype=np.float32)
            cuts = [0, *sorted(rng.choice(np.arange(1, 40), 6, replace=False)), 40]
            got = []
            for a, b in zip(cuts, cuts[1:]):
                parameters = {"sequence_id": i + 1, "sequence_start": bool(a == 0), "sequence_end": bool(b == 40)}
                request = InferRequest("forecast", "", "", {"x": x[:, a:b]}, [], parameters)
                got.append((await model.infer(request)).outputs["y"])
            zeros = np.zeros((1, 1, 32), np.float32)
            return np.array_equal(np.concatenate(got, 1), model.model(x=x, h0=zeros, c0=zeros).y)

        assert all(await asyncio.gather(*(client(i) for i in range(20))))
        assert len(model.sequences.batchers) == (pools if pools < 8 else 8)

    serve(test, "forecast")


def test_a_shape_that_no_model_takes_leaves_no_pool_behind():
    async def test(model):
        for n in range(12):
            with pytest.raises((InputError, InputTypeError, UnsupportedError)):
                await Client(model, "a").send(np.zeros((1, 23 + n), np.float32), start=True)
        x = frames(0, 1)
        assert np.array_equal((await Client(model, "a").send(x[0], start=True))["gains"], alone(x)[0])
        assert len(model.sequences._pools) == 1

    serve(test)


def test_a_follower_of_a_first_request_that_fails_is_refused():
    async def test(model):
        c, x = Client(model, "a"), frames(0, 2)
        got = await asyncio.gather(c.send(x[0][:, :5], start=True), c.send(x[1]), return_exceptions=True)
        assert isinstance(got[0], InputError) and isinstance(got[1], UnknownSequenceError)
        assert len(model.sequences) == 0

    serve(test)


def test_a_sequence_of_several_rows_runs_as_calls():
    async def test(model):
        c, x = Client(model, "a"), np.random.default_rng(0).standard_normal((4, 3, BANDS), dtype=np.float32)
        got = [await c.send(f, t == 0) for t, f in enumerate(x)]
        rows = [alone(x[:, i : i + 1]) for i in range(3)]
        assert all(np.array_equal(g["gains"], np.concatenate(rows)) for g, rows in zip(got, zip(*rows)))
        with pytest.raises(InputError):
            await c.send(x[0][:2])
        assert (await c.send(x[0]))["gains"].shape == (3, BANDS)

    serve(test)


@pytest.mark.parametrize("name", ("tagger", "languages", "digits", "detector"))
def test_calls_that_come_together_have_the_bits_of_calls_alone(name):
    """Calls of one row and of several, of equal and of other lengths; some fail."""

    async def test(model):
        async def ask(feed):
            return (await model.infer(InferRequest(name, "", "", feed, [], {}))).outputs

        rng, feeds = np.random.default_rng(0), []
        for n in range(60):
            rows, frames, feed = (1, 1, 3)[n % 3], int(rng.integers(100, 130)), {}
            for v in model.model.inputs:
                shape = [rows if m == "batch" else frames if type(m) is not int else m for m in v.type.shape]
                integers = v.type.dtype.kind in "iu"
                x = rng.integers(0, 5, shape) if integers else rng.standard_normal(shape)
                x = np.full(shape, 16000) if v.name == "rate" else np.full(shape, frames) if v.name == "lengths" else x
                feed[v.name] = np.asarray(x, v.type.dtype)
            feeds.append(feed)
        feeds[7] = {feed: value[..., None] for feed, value in feeds[7].items()}
        got = await asyncio.gather(*map(ask, feeds), return_exceptions=True)
        for n, (feed, outputs) in enumerate(zip(feeds, got)):
            if n == 7:
                assert isinstance(outputs, (InputError, InputTypeError))
                continue
            expected = model.model(feed)
            assert list(outputs) == list(expected)
            for output, value in outputs.items():
                assert value.shape == expected[output].shape and value.tobytes() == expected[output].tobytes()
        return model._calls.stats()

    stats = serve(test, name)
    assert stats["calls"] + stats["frames"] >= 59
    if name in ("tagger", "languages"):
        assert stats["frames"] > 0


def test_a_model_that_is_warm_has_its_pool_before_the_first_request():
    async def test(model):
        model.warm()
        (batcher,) = model.sequences.batchers
        assert batcher.stats()["batches"] == 0
        x = frames(0, 3)
        got = [await Client(model, "a").send(f, t == 0) for t, f in enumerate(x)]
        assert all(np.array_equal(g["gains"], e) for g, e in zip(got, alone(x)))
        assert model.sequences.batchers == [batcher]

    serve(test, warm={"bands": [1, BANDS]})


def test_the_order_of_inputs_in_a_request_makes_no_other_pool():
    assert shapes_of({"a": np.zeros(1), "b": np.zeros(2)}) == shapes_of({"b": np.ones(2), "a": np.ones(1)})


def test_requests_of_an_id_run_in_order_though_its_sequence_ends_and_begins_anew_between_them():
    async def test(model):
        c, x = Client(model, "a"), frames(0, 4)
        await c.send(x[0], start=True)

        async def first():
            await c.send(x[1], end=True)
            return await c.send(x[3])  # It comes before the other's request, which came earlier, got its turn.

        last, anew = await asyncio.gather(first(), c.send(x[2], start=True))
        assert all(np.array_equal(g["gains"], e) for g, e in zip((anew, last), alone(x[2:])))
        assert len(model.sequences) == 1 and not model.sequences._turns

    serve(test)


@pytest.mark.parametrize("cancelled", (False, True))
def test_a_request_to_begin_anew_that_is_not_run_leaves_its_sequence_as_it_was(cancelled):
    async def test(model):
        c, x = Client(model, 5), frames(0, 5)
        got = [await c.send(x[t], t == 0) for t in range(2)]
        with held(model.sequences.batchers[0]):
            anew = asyncio.create_task(c.send(x[4], start=True, timeout=0 if cancelled else 1))
            await asyncio.sleep(0.05)
            if cancelled:
                anew.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else DeadlineError):
            await anew
        got += [await c.send(x[t]) for t in (2, 3)]
        assert all(np.array_equal(g["gains"], e) for g, e in zip(got, alone(x)))

    serve(test)


def test_a_request_that_fails_ends_no_pool_in_which_another_one_runs():
    """Two sequences begin with a shape that was never computed; one client goes away while the batch runs."""

    async def test(model):
        make, running, may_run = model.sequences._make_batcher, threading.Event(), threading.Event()

        def batcher(*arguments):
            made = make(*arguments)
            step = made._worker._pool.step_validated

            def slow(*args):
                running.set()
                may_run.wait(20)
                return step(*args)

            made._worker._pool.step_validated = slow
            posting.enter_context(held(made))
            return made

        model.sequences._make_batcher = batcher
        x = frames(0, 3)
        with contextlib.ExitStack() as posting:
            tasks = [asyncio.create_task(Client(model, i).send(x[0], start=True)) for i in (1, 2)]
            await asyncio.sleep(0.05)
        assert await asyncio.to_thread(running.wait, 20)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        may_run.set()
        got = [await tasks[1], await Client(model, 2).send(x[1]), await Client(model, 2).send(x[2])]
        assert all(np.array_equal(g["gains"], e) for g, e in zip(got, alone(x)))
        assert len(model.sequences.batchers) == 1

    serve(test)


def test_a_request_with_a_wrong_fixed_input_leaves_no_pool_behind(tmp_path):
    text = """agraph (float[1, n] x, float[1] h, int64 rate) => (float[1, n] y, float[1] h_out)
    {
        r = Cast <to = 1> (rate)
        y = Mul (x, r)
        h_out = Add (h, r)
    }"""
    (tmp_path / "rated.onnx").write_bytes(parse(text))

    async def test(model):
        async def send(n, rate, start):
            inputs = {"x": np.zeros((1, n), np.float32), "rate": np.array(rate)}
            parameters = {"sequence_id": 1, "sequence_start": start}
            return await model.infer(InferRequest("rated", "", "", inputs, [], parameters))

        for n in range(1, 12):
            with pytest.raises((InputError, UnsupportedError)):
                await send(n, [0, 0], True)
        assert model.sequences is not None and not model.sequences._pools and not model.sequences._live
        await send(1, 7, True)
        for n in range(2, 12):
            with pytest.raises(InputError):
                await send(n, 8, False)
        assert len(model.sequences._pools) == 1

    async def run():
        model = ServedModel("rated", "1", str(tmp_path / "rated.onnx"), ModelSettings())
        try:
            await test(model)
        finally:
            model.close()

    asyncio.run(run())


def test_fixed_inputs_of_sequences_that_ended_are_not_kept():
    class FakeBatcher:
        open_streams, opened = 0, 0

        def open(self, state, **fixed):
            if self.open_streams == 3:
                raise LimitError("all 3 streams are open")
            self.open_streams, self.opened = self.open_streams + 1, self.opened + 1
            return self.opened

        def close(self, stream):
            self.open_streams -= 1

    streams = Streams(FakeBatcher())
    for i in range(50):
        fixed = {"rate": np.array(i % 40)}
        streams.give_back(streams.take(fixed), fixed)
        assert streams.taken == 0 and len(streams._free) <= 3
    taken = [streams.take({"rate": np.array(i)}) for i in (9, 50, 51)]
    assert len(set(taken)) == streams.taken == 3 and not streams._free
    with pytest.raises(Overloaded):
        streams.take({"rate": np.array(9)})


def test_requests_that_wait_for_their_turn_may_be_cancelled_at_any_moment():
    """Those that wait run in their order, whoever leaves, also one whose turn had just come."""

    async def test(model):
        c, rng, ran, run = Client(model, "a"), np.random.default_rng(7), [], model.sequences._run
        await c.send(frames(0, 1)[0], start=True)

        async def recorded(sequence, parameters, frame, *rest):
            ran.append(float(frame["bands"][0, 0]))
            return await run(sequence, parameters, frame, *rest)

        model.sequences._run = recorded
        cancelled = 0
        for _ in range(60):
            x = np.arange(8, dtype=np.float32)[:, None, None] + np.zeros((1, BANDS), np.float32)
            tasks = [asyncio.ensure_future(c.send(f, outputs=("gains", "new_state"))) for f in x]
            for task in tasks:
                for _ in range(rng.integers(4)):
                    await asyncio.sleep(0)
                if rng.integers(3) == 0:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert not model.sequences._turns
            assert ran == sorted(ran) and {k for k, task in enumerate(tasks) if not task.cancelled()} <= set(ran)
            cancelled += 8 - len(ran)
            ran.clear()
        assert cancelled > 20

    serve(test)


def test_a_request_of_another_client_waits_for_one_that_runs_without_a_task():
    """It begins the sequence anew, asks for its state, or ends it, while a further frame of it waits for a batch."""

    async def test(model):
        c, x = Client(model, "a"), frames(1, 6)
        got = [await c.send(x[0], start=True)]
        request = InferRequest(model.name, "", "", {"bands": x[1]}, [], {"sequence_id": "a"})
        results = []
        with held(model.sequences.batchers[0]):
            assert model.submit(request, lambda response, error: results.append((response, error))) is not None
            assert model.submit(request, lambda *_: None) is None  # It waits for its turn, which needs a task.
            other = asyncio.ensure_future(c.send(x[2], outputs=("gains", "new_state"), end=True))
            await asyncio.sleep(0.02)
            assert not results and not other.done()
        got.append(await other)
        ((response, error),) = results
        assert error is None
        got.insert(1, response.outputs)
        assert all(np.array_equal(g["gains"], e) for g, e in zip(got, alone(x[:3])))
        assert not len(model.sequences) and not model.sequences._turns

    serve(test)
