"""Load for models/vad_service.py: many microphones at once, whose replies are compared with those of single streams.

python models/vad_load.py ws://127.0.0.1:8765 SILERO_VAD.onnx --streams 1000 --seconds 60

Each microphone sends speech.wav in real time from another place on, and each reply must have the bits that a stream of
the model alone gives. The exit status is 1 if a frame was lost, swapped, refused or answered with other bits.
"""

import array
import asyncio
import json
import random
import sys
import urllib.request

import click
import numpy as np
from picows import WSCloseCode, WSListener, WSMsgType, ws_connect
from vad_demo import CHUNK, FOLDER, SAMPLE_RATE, chunks

import rnnfast
from rnnfast.cli.input_files import read_wav

PLACES = 16  # places of the speech at which microphones begin
PERIOD = CHUNK / SAMPLE_RATE  # seconds from frame to frame
PATIENCE = 5  # seconds within which the last replies must come


class Microphone(WSListener):
    """One connection.

    frames: its messages; expected: the right replies, as bytes; vanish: the number of frames after which it goes away
    without closing, None for never.
    """

    def __init__(self, frames, expected, vanish, latencies):
        self.frames, self.expected, self.vanish, self.latencies = frames, expected, vanish, latencies
        self.sent, self.answered, self.wrong, self.said = [], 0, 0, None

    def on_ws_connected(self, transport):
        self.transport, self.now = transport, asyncio.get_running_loop().time

    def send(self):
        """Send the next frame, or vanish."""
        if len(self.sent) == self.vanish:
            self.transport.disconnect(False)
        elif self.vanish is None or len(self.sent) < self.vanish:
            self.transport.send(WSMsgType.BINARY, self.frames[len(self.sent)])
            self.sent.append(self.now())

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            self.said = frame.get_close_reason()
            transport.disconnect()
            return
        self.latencies.append(self.now() - self.sent[self.answered])
        if frame.get_payload_as_bytes() != self.expected[self.answered]:
            self.wrong += 1
            self.said = self.said or frame.msg_type == WSMsgType.TEXT and frame.get_payload_as_utf8_text()
        self.answered += 1

    @property
    def lost(self):
        """The number of frames without a reply."""
        return len(self.sent) - self.answered if self.vanish is None else 0


def recordings(path, count):
    """Yield the messages of `count` frames and the right replies, for each place of the speech."""
    samples, stream = read_wav(str(FOLDER / "speech.wav")), rnnfast.load(path).stream(sr=SAMPLE_RATE)
    for place in range(PLACES):
        audio = np.resize(np.roll(samples, -place * len(samples) // PLACES), count * CHUNK)
        stream.reset()
        found = stream.run(input=chunks(audio)).reshape(count).astype("<f4")
        messages = (audio * 2**15).astype("<i2").reshape(count, CHUNK)
        yield [message.tobytes() for message in messages], [reply.tobytes() for reply in found]


async def load(url, path, streams, seconds, kill):
    """Send frames in real time, print the results and return whether all replies were right."""
    count, latencies, late = round(seconds / PERIOD), array.array("d"), 0.0
    kinds = list(recordings(path, count))
    microphones = [
        Microphone(*kinds[i % PLACES], random.randrange(count) if i < kill else None, latencies) for i in range(streams)
    ]
    for microphone in microphones:
        await ws_connect(lambda microphone=microphone: microphone, url)
    now = asyncio.get_running_loop().time
    begun, done = now(), 0
    while done < count * streams:
        due = min(int((now() - begun) / PERIOD * streams) + 1, count * streams)
        for n in range(done, due):
            microphones[n % streams].send()
        late = max(late, now() - begun - done * PERIOD / streams)
        done = due
        await asyncio.sleep(0.0005)
    while any(microphone.lost for microphone in microphones) and now() < begun + seconds + PATIENCE:
        await asyncio.sleep(0.01)
    took = now() - begun
    stats = await asyncio.to_thread(
        lambda: json.load(urllib.request.urlopen(url.replace("ws", "http", 1) + "/stats", timeout=PATIENCE))
    )
    for microphone in microphones:
        microphone.transport.send_close(WSCloseCode.OK)
    await asyncio.wait([asyncio.ensure_future(m.transport.wait_disconnected()) for m in microphones], timeout=PATIENCE)

    sent, lost, wrong = (sum(values) for values in zip(*((len(m.sent), m.lost, m.wrong) for m in microphones)))
    print(
        f"{streams:,} microphones, {took:.1f} s: {sent:,} frames sent (by up to {1e3 * late:.1f} ms late), "
        f"{len(latencies):,} answered, {len(latencies) / took:,.0f} a second"
    )
    print(f"{lost} lost, {wrong} with other bits than a stream alone, {min(kill, streams)} microphones vanished")
    print(
        "latency in ms: "
        + ", ".join(
            f"{name} {1e3 * value:.1f}"
            for name, value in zip(
                ["50 %", "90 %", "99 %", "99.9 %", "largest"], np.quantile(latencies or [0], [0.5, 0.9, 0.99, 0.999, 1])
            )
        )
    )
    print(f"batches of the service: {stats['mean_batch']:.1f} frames in the mean")
    for said in {m.said for m in microphones if m.said and (m.lost or m.wrong)}:
        print(f"the service said: {said}")
    return not lost and not wrong


@click.command()
@click.argument("url")
@click.argument("model")
@click.option("--streams", default=1000, show_default=True, help="Microphones.")
@click.option("--seconds", default=60.0, show_default=True, help="How long each sends.")
@click.option("--kill", default=0, help="So many microphones vanish in the middle, without closing.")
def main(url, model, streams, seconds, kill):
    """Send the sound of many microphones to the service at URL and compare its replies with MODEL's."""
    sys.exit(0 if asyncio.run(load(url, model, streams, seconds, kill)) else 1)


if __name__ == "__main__":
    main()
