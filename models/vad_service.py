"""A WebSocket service that tells speech from silence for many microphones at a time, with Silero VAD in one Batcher.

python models/vad_service.py SILERO_VAD.onnx

The model is for 16 kHz; `make demo` fetches the file, and `pip install '.[service]'` installs what this needs.

A connection is a microphone. Each binary message is 512 samples (32 ms) of 16-bit little-endian PCM at 16 kHz. It is
answered, in order, by the probability of speech as a little-endian float32 (4 bytes). Where too many frames wait, the
answer is the text {"error": ...} and the frame was not taken. Messages of another kind, too many microphones, a line
that stays silent and the end of the service close the connection with a code and a reason. GET /stats returns the
batcher's numbers as JSON.
"""

import asyncio
import contextlib
import gc
import json
import signal

import click
import numpy as np
from picows.websockets.asyncio.server import serve  # the interface of websockets, but faster
from picows.websockets.exceptions import ConnectionClosed

import rnnfast

SAMPLE_RATE, CHUNK, CONTEXT = 16000, 512, 64  # before each chunk stand the last samples of the chunk before
LARGEST = 64  # the most streams in a plan; a pool runs larger batches in parts
INVALID, OVER, FULL = 1003, 1001, 1013  # close codes of WebSockets


async def microphone(connection, batcher):
    """Serve one connection from beginning to end."""
    closing = []  # asyncio drops tasks that nobody refers to
    try:
        stream = batcher.open(
            on_close=lambda _: closing.append(asyncio.ensure_future(connection.close(OVER, "no audio came")))
        )
    except rnnfast.Error as e:
        await connection.close(FULL, str(e))
        return
    context = np.zeros(CONTEXT, np.float32)
    try:
        async for message in connection:
            if not isinstance(message, bytes) or len(message) != 2 * CHUNK:
                await connection.close(
                    INVALID,
                    f"{type(message).__name__} of length {len(message)} came, expected "
                    f"{2 * CHUNK} bytes: {CHUNK} samples of 16 bits",
                )
                break
            frame = np.concatenate([context, np.frombuffer(message, "<i2") / np.float32(2**15)])[None]
            try:
                probability = await batcher.step(stream, frame)
            except rnnfast.errors.Overloaded as e:
                await connection.send(json.dumps({"error": str(e)}))
                continue
            context = frame[0, -CONTEXT:]
            await connection.send(probability.tobytes())
    except ConnectionClosed:
        pass  # the client went away without closing
    except rnnfast.errors.ClosedError as e:
        await connection.close(OVER, str(e))
    finally:
        with contextlib.suppress(rnnfast.errors.ClosedError):  # it was idle, or the service is ending
            batcher.close(stream)


def ready(pool):
    """Return the pool after making its plans for all batch sizes, so that nobody has to wait for them."""
    streams = [pool.open() for _ in range(min(pool.max_streams, LARGEST))]
    for count in range(1, len(streams) + 1):
        pool.step(dict.fromkeys(streams[:count], np.zeros((1, CONTEXT + CHUNK), np.float32)))
    for stream in streams:
        pool.close(stream)
    return pool


async def run(model, host, port, max_streams, idle):
    """Serve until SIGINT or SIGTERM, then answer the frames that wait and end."""
    batcher = rnnfast.Batcher(ready(model.pool(max_streams, sr=SAMPLE_RATE)), idle=idle)
    gc.freeze()  # loaded objects stay; collections that visit them take up to 30 ms, while frames wait
    ended = asyncio.Event()
    for number in signal.SIGINT, signal.SIGTERM:
        asyncio.get_running_loop().add_signal_handler(number, ended.set)

    def stats(connection, request):
        return connection.respond(200, json.dumps(batcher.stats())) if request.path == "/stats" else None

    # max_queue: picows 2.3 does not deliver messages that came after it had stopped reading because of a full queue
    async with serve(
        lambda connection: microphone(connection, batcher),
        host,
        port,
        process_request=stats,
        compression=None,
        max_size=4 * CHUNK,
        max_queue=None,
        close_timeout=1,
    ) as server:
        address, number = server.sockets[0].getsockname()[:2]
        print(f"listening on ws://{address}:{number}", flush=True)
        await ended.wait()
        await asyncio.to_thread(batcher.drain)
        server.close(code=OVER, reason="the service ends")
    numbers = batcher.stats()
    print(f"{numbers['frames']:,} frames in batches of {numbers['mean_batch']:.1f}")


@click.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8765, show_default=True, help="0 takes any free port.")
@click.option("--max-streams", default=1024, show_default=True, help="Microphones at a time.")
@click.option("--idle", default=30.0, show_default=True, help="Seconds without audio before a connection is closed.")
def main(model, host, port, max_streams, idle):
    """Tell speech from silence for many microphones."""
    asyncio.run(run(rnnfast.load(model), host, port, max_streams, idle))


if __name__ == "__main__":
    main()
