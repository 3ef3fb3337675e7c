"""Silero VAD behind a Batcher under asyncio: how many microphones one core keeps up with, and how long a frame waits.

Senders, event loop and the batcher's thread share one process on one core. Every reply must have the bits of a stream
that runs alone.
"""

import asyncio
import functools
import gc

import numpy as np

PERIOD = 0.032  # seconds of sound in a frame
VOICES = 16  # different sounds, which the streams take in turn
SECONDS = 8.0  # duration of each measurement
PHASES = 32  # groups of streams, which send one after the other within a period


def measure(case):
    """Measure a Batcher under full load and in real time.

    Returns a dict: "streams", how many a core keeps up with; "p50" and "p99", milliseconds until a reply with case.B
    streams in real time; "batch", the mean number of frames of a batch then; "frames", the number of replies; "wrong",
    the number of those with other bits than the stream alone.
    """
    from bench.streams import Silero

    source = Silero(case)
    steps = int(SECONDS / PERIOD) + 1
    sound = (0.1 * np.random.default_rng(1).standard_normal((VOICES, steps, 1, 576))).astype(np.float32)
    stream, right = source.stream(), []
    for voice in sound:
        right.append([stream.step(input=frame).tobytes() for frame in voice])
        stream.reset()
    frames = [list(voice) for voice in sound]
    gc.collect()
    gc.freeze()  # as services do: a collection that visits every loaded module takes 10 ms
    busy = asyncio.run(_run(source, case.B, frames, right, False))
    live = asyncio.run(_run(source, case.B, frames, right, True))
    gc.unfreeze()
    p50, p99 = np.percentile(live["seconds"], [50, 99]) * 1e3
    return {
        "streams": busy["rate"] * PERIOD,
        "p50": p50,
        "p99": p99,
        "batch": live["batch"],
        "frames": busy["frames"] + live["frames"],
        "wrong": busy["wrong"] + live["wrong"],
    }


async def _run(source, count, frames, right, real_time):
    """Send frames of `count` streams for SECONDS and return the rate, the waiting times and the count of wrong replies.

    real_time: each stream sends a frame every 32 ms; otherwise each sends the next as soon as the last is answered.
    """
    from rnnfast import Batcher

    loop = asyncio.get_running_loop()
    with Batcher(source.pool(1), max_queue=10**6) as batcher:
        ids = [batcher.open() for _ in range(count)]
        for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):  # plans are made before the clock starts
            await asyncio.gather(*[batcher.step(i, frames[0][0]) for i in ids[:size]])
        for i in ids:
            batcher.close(i)
        ids = [batcher.open() for _ in range(count)]
        begun, seconds, wrong = loop.time(), [], [0]
        done = asyncio.Event()
        open_calls = [0]

        def send(k, t, due):
            open_calls[0] += 1
            call = batcher.step(ids[k], frames[k % VOICES][t])
            call.add_done_callback(functools.partial(answered, k, t, due))

        def answered(k, t, due, call):
            now = loop.time()
            open_calls[0] -= 1
            seconds.append(now - due)
            wrong[0] += call.result().tobytes() != right[k % VOICES][t]
            if not real_time and now < begun + SECONDS and t + 1 < len(frames[0]):
                send(k, t + 1, now)
            elif not open_calls[0]:
                done.set()

        if real_time:
            for t in range(int(SECONDS / PERIOD)):
                for phase in range(PHASES):
                    due = begun + (t + phase / PHASES) * PERIOD
                    await asyncio.sleep(max(due - loop.time(), 0))
                    for k in range(phase, count, PHASES):
                        send(k, t, due)
        else:
            for k in range(count):
                send(k, 0, loop.time())
        if open_calls[0]:
            done.clear()
            await done.wait()
        took, stats = loop.time() - begun, batcher.stats()
    return {
        "rate": len(seconds) / took,
        "seconds": seconds,
        "frames": len(seconds),
        "wrong": wrong[0],
        "batch": stats["mean_batch"],
    }
