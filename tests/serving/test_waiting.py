"""Batches wait for active streams, and for no others."""

import asyncio
import time

import numpy as np

import rnnfast
from rnnfast import nn


def net():
    return nn.GRU(3, 5, rng=1)


def frames(seed, count):
    return np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)


def alone(x):
    stream = net().stream()
    return np.stack([stream.step(frame) for frame in x])


def closed_loops(batcher, streams, xs):
    """The results of clients who send a frame when they have the result of the last."""

    async def client(stream, x):
        return np.stack([await batcher.step(stream, frame) for frame in x])

    async def main():
        return await asyncio.gather(*map(client, streams, xs))

    return asyncio.run(main())


def test_a_lone_client_does_not_wait_for_silent_streams():
    with rnnfast.Batcher(net().pool(40), max_wait=0.1) as batcher:
        streams, x, begun = [batcher.open() for _ in range(32)], frames(0, 40), time.monotonic()
        (y,) = closed_loops(batcher, streams[3:4], [x])
        assert time.monotonic() - begun < 20 * 0.1  # three waits, and room for a busy machine; it would be 40
        assert np.array_equal(y, alone(x))


def test_clients_share_batches_beside_silent_streams():
    with rnnfast.Batcher(net().pool(40), max_wait=0.2) as batcher:
        streams = [batcher.open() for _ in range(32)]
        xs = [frames(k, 60) for k in range(8)]
        begun = time.monotonic()
        ys = closed_loops(batcher, streams[::4], xs)
        assert time.monotonic() - begun < 30 * 0.2
        assert all(np.array_equal(y, alone(x)) for x, y in zip(xs, ys))
        assert batcher.stats()["mean_batch"] > 7


def test_a_stream_that_stops_or_is_closed():
    """It costs three waits at most, and none where it is closed; one that comes back shares batches again."""
    with rnnfast.Batcher(net().pool(4), max_wait=0.2) as batcher:
        streams = [batcher.open() for _ in range(3)]
        closed_loops(batcher, streams, [frames(k, 3) for k in range(3)])
        batcher.close(streams[2])
        begun = time.monotonic()
        closed_loops(batcher, streams[:1], [frames(5, 30)])
        assert 0.2 < time.monotonic() - begun < 15 * 0.2  # the second of them stopped
        before = batcher.stats()
        closed_loops(batcher, streams[:2], [frames(6, 20), frames(7, 20)])
        after = batcher.stats()
        assert after["batches"] - before["batches"] <= 22
        batcher.close(streams[1])
        begun = time.monotonic()
        closed_loops(batcher, streams[:1], [frames(8, 4)])
        assert time.monotonic() - begun < 0.2


def test_streams_are_counted_once():
    """Whatever is opened, closed and stepped, no more streams are active than open."""
    rng = np.random.default_rng(3)
    with rnnfast.Batcher(net().pool(12), max_batch=5, max_wait=0) as batcher:
        open_streams, futures = [], []
        for _ in range(400):
            what = rng.integers(5)
            if what == 0 and len(open_streams) < 10:
                open_streams.append(batcher.open())
            elif what == 1 and open_streams:
                batcher.close(open_streams.pop(rng.integers(len(open_streams))))
            elif open_streams:
                futures.append(batcher.submit(open_streams[rng.integers(len(open_streams))], frames(0, 1)[0]))
            if what == 4 and futures:
                futures[-1].exception(20)
            assert 0 <= batcher._worker._active_streams() <= len(open_streams)
        for stream in open_streams:
            batcher.close(stream)
        for future in futures:
            future.exception(20)
        assert batcher._worker._active_streams() == 0


def test_frames_wait_for_others_where_enough_streams_are_open():
    """Here the other active stream sends nothing; a frame that has no time does not wait for it."""

    async def main(batcher, streams):
        await asyncio.gather(*[batcher.step(stream, frames(0, 1)[0]) for stream in streams[:2]])
        begun = time.monotonic()
        await batcher.step(streams[0], frames(1, 1)[0])
        waited, begun = time.monotonic() - begun, time.monotonic()
        await batcher.step(streams[0], frames(2, 1)[0], timeout=0.2)
        return waited, time.monotonic() - begun

    for open_streams, wait_from, waits in ((2, 3, False), (3, 3, True), (3, 0, True)):
        with rnnfast.Batcher(net().pool(4), max_wait=0.3, wait_from=wait_from) as batcher:
            streams = [batcher.open() for _ in range(open_streams)]
            waited, hurried = asyncio.run(main(batcher, streams))
            assert (waited > 0.25) == waits and hurried < 0.25


def test_a_frame_without_time_runs_with_those_that_wait():
    async def main(batcher, streams):
        for _ in range(2):
            await asyncio.gather(*[batcher.step(stream, frames(0, 1)[0]) for stream in streams])
        begun = time.monotonic()
        waiting = batcher.step(streams[0], frames(1, 1)[0])
        await asyncio.sleep(0.05)
        await asyncio.gather(waiting, batcher.step(streams[1], frames(2, 1)[0], timeout=0.1))
        return time.monotonic() - begun

    with rnnfast.Batcher(net().pool(4), max_wait=2.0) as batcher:
        assert asyncio.run(main(batcher, [batcher.open() for _ in range(3)])) < 1.5
