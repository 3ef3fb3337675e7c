"""A live service of Silero VAD on Ray Serve, with speakers who talk to it while replicas come and go.

python models/ray_service.py SILERO_VAD.onnx

Each speaker sends half a second of sound at a time, in real time, and compares each reply, bit for bit, with that of a
stream alone. In the middle the service is deployed anew with one more replica, and later one replica is killed: its
speakers are told, and begin anew. `make ray-service` fetches the model and installs what this needs. It uses the cores
of this machine or, if RAY_ADDRESS is set, of a cluster, on all nodes of which rnnfast has to be installed.

With --keep it serves until Ctrl-C: POST to http://127.0.0.1:8000/vad with the header x-session-id; docs/howto/ray.md
has the requests.
"""

import asyncio
import os
import pathlib
import signal
import sys
import time
import wave

import click
import numpy as np
import ray
from ray import serve

import rnnfast
from rnnfast.ray import deployment

SOURCE = pathlib.Path(__file__).parent / "speech.wav"
SAMPLE_RATE, CHUNK, CONTEXT = 16000, 512, 64  # before each chunk stand the last samples of the chunk before
FRAMES = 16  # in a request: half a second
PATIENCE = 5.0  # seconds within which a speaker of a dead replica is told


def sound():
    """Return the chunks of speech.wav with their contexts, [chunks, 1, CONTEXT + CHUNK], in whole requests."""
    with wave.open(str(SOURCE)) as wav:
        samples = np.frombuffer(wav.readframes(wav.getnframes()), "<i2") / np.float32(2**15)
    chunks = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (CONTEXT, 0)), CONTEXT + CHUNK)[::CHUNK, None]
    return np.ascontiguousarray(chunks[: len(chunks) // FRAMES * FRAMES])


class Speaker:
    """One who talks to the service for as long as it is let, over and over."""

    def __init__(self, handle, name, chunks, right):
        self.handle, self.name, self.chunks, self.right = handle.options(session_id=name), name, chunks, right
        self.replies, self.wrong, self.told, self.failed = [], 0, [], []

    async def talk(self, until):
        """Send a request every half second until a time of the monotonic clock."""
        position, start, due = 0, True, time.monotonic()
        while due < until:
            await asyncio.sleep(due - time.monotonic())
            begun = time.monotonic()
            part = slice(position, position + FRAMES)
            try:
                reply = await self.handle.step.remote(self.chunks[part], self.name, sequence_start=start)
            except rnnfast.errors.ClosedError:
                self.told.append(time.monotonic() - begun)
                position, start = 0, True
                continue
            except ray.exceptions.RayActorError:  # it was on its way when the replica died
                self.failed.append(time.monotonic() - begun)
                position, start = 0, True
                continue
            self.replies.append(time.monotonic() - begun)
            self.wrong += not np.array_equal(reply, self.right[part])
            position, start = (position + FRAMES) % len(self.chunks), position + FRAMES == len(self.chunks)
            due = max(due + FRAMES * CHUNK / SAMPLE_RATE, time.monotonic() - 1)


def deploy(model, replicas):
    """Deploy the service with so many replicas and return its handle."""
    cpus = min(1.0, ray.cluster_resources()["CPU"] / (2 * replicas + 2))  # as old ones stay while new ones come
    app = deployment(
        model,
        max_streams=512,
        num_replicas=replicas,
        fixed={"sr": SAMPLE_RATE},
        ray_actor_options={"num_cpus": round(cpus, 2)},
        logging_config={"log_level": "ERROR"},
    )
    return serve.run(app, name="vad", route_prefix="/vad", logging_config={"log_level": "ERROR"})


def kill_one():
    """Kill the process of one replica."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith("SERVE_REPLICA::vad#"):
            ray.kill(ray.get_actor(**actor))
            return


def shown(what, speakers, before):
    """Print what the speakers have seen since they had so many replies."""
    times = [t for speaker, n in zip(speakers, before) for t in speaker.replies[n:]]
    told = [t for speaker in speakers for t in (*speaker.told, *speaker.failed)]
    print(
        f"{what:36}{len(times):6,} replies, {sum(s.wrong for s in speakers)} with other bits, "
        f"50 % {np.median(times) * 1e3:.0f} ms, 99 % {np.percentile(times, 99) * 1e3:.0f} ms; "
        f"{len(told)} told to begin anew" + (f", after {max(told):.1f} s at most" if told else ""),
        flush=True,
    )
    return told


async def talk(speakers, seconds, meanwhile=None):
    """Let all speakers talk for some seconds."""
    until = time.monotonic() + seconds
    tasks = [asyncio.create_task(speaker.talk(until)) for speaker in speakers]
    if meanwhile is not None:
        await asyncio.sleep(seconds / 4)
        await asyncio.to_thread(meanwhile)
    await asyncio.gather(*tasks)


@click.command()
@click.argument("model")
@click.option("--speakers", default=24, show_default=True, help="How many speak at a time.")
@click.option("--keep", is_flag=True, help="Serve until Ctrl-C instead.")
def main(model, speakers, keep):
    """Serve live speech, and talk to it."""
    if "RAY_ADDRESS" in os.environ:
        ray.init(address="auto", log_to_driver=False)
    else:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        handle = deploy(model, 2)
        if keep:
            print("listening on http://127.0.0.1:8000/vad", flush=True)
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
            return
        sys.exit(asyncio.run(demonstrate(model, handle, speakers)))
    finally:
        serve.shutdown()
        ray.shutdown()


async def demonstrate(model, handle, count):
    """Let speakers talk through a redeployment and the death of a replica; return what is wrong, or None."""
    chunks = sound()
    right = rnnfast.load(model).stream(sr=SAMPLE_RATE).run(input=chunks)
    speakers = [Speaker(handle, f"speaker {k}", chunks, right) for k in range(count)]
    before = [0] * count
    await talk(speakers, 10)
    told = shown(f"{count} speakers, 2 replicas:", speakers, before)

    before = [len(speaker.replies) for speaker in speakers]
    # Speakers begin each part with a first request of the same session, which begins anew: a state that is left over
    # from the part before is of no use.
    await talk(speakers, 40, lambda: deploy(model, 3))
    told += shown("deployed anew, 3 replicas:", speakers, before)
    if told:
        return "a sequence was lost while the service was deployed anew"

    before = [len(speaker.replies) for speaker in speakers]
    await talk(speakers, 20, kill_one)
    told = shown("one replica killed:", speakers, before)
    if sum(speaker.wrong for speaker in speakers):
        return "a reply has other bits than the stream alone"
    if not told or max(told) > PATIENCE:
        return f"the speakers of a dead replica were not told within {PATIENCE:.0f} s"
    return None


if __name__ == "__main__":
    main()
