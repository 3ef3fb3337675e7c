"""Load for a server of Silero VAD: many microphones at once, whose replies are compared with those of single streams.

rnnfast serve SILERO_VAD.onnx --http-port 8000
python models/vad_load.py ws://127.0.0.1:8000/v2/models/silero_vad/stream SILERO_VAD.onnx --streams 1000 --seconds 60

Each microphone is a WebSocket. It sends speech.wav in real time from another place on, in messages of 512 samples of 16
bits, and each reply, a float32, must have the bits that a stream of the model alone gives. The exit status is 1 if a
frame was lost, swapped, refused or answered with other bits.
"""

import array
import asyncio
import json
import random
import sys
import urllib.parse
import urllib.request

import click
import numpy as np
from vad_demo import CHUNK, CONTEXT, FOLDER, SAMPLE_RATE, chunks
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.uri import parse_uri

import rnnfast
from rnnfast.cli.input_files import read_wav

PLACES = 16  # places of the speech at which microphones begin
PERIOD = CHUNK / SAMPLE_RATE  # seconds from frame to frame
PATIENCE = 5  # seconds within which the last replies must come


class Microphone(asyncio.Protocol):
    """One connection.

    frames: its messages; expected: the right replies, as bytes; vanish: the number of frames after which it goes away
    without closing, None for never.
    """

    def __init__(self, url, frames, expected, vanish, latencies):
        self.frames, self.expected, self.vanish, self.latencies = frames, expected, vanish, latencies
        self.sent, self.answered, self.wrong, self.said = [], 0, 0, None
        self.websocket = ClientProtocol(parse_uri(url))
        self.now = asyncio.get_running_loop().time
        self.opened, self.closed = asyncio.Event(), asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        self.websocket.send_request(self.websocket.connect())
        self.flush()

    def flush(self):
        for data in self.websocket.data_to_send():
            if data:
                self.transport.write(data)
            else:
                self.transport.close()

    def send(self):
        """Send the next frame, or vanish."""
        if len(self.sent) == self.vanish:
            self.transport.abort()
        elif self.vanish is None or len(self.sent) < self.vanish:
            self.websocket.send_binary(self.frames[len(self.sent)])
            self.sent.append(self.now())
            self.flush()

    def data_received(self, data):
        self.websocket.receive_data(data)
        for event in self.websocket.events_received():
            if not self.opened.is_set():
                self.opened.set()
            elif event.opcode is Opcode.CLOSE:
                self.said = self.websocket.close_reason
            elif event.opcode in (Opcode.BINARY, Opcode.TEXT):
                self.latencies.append(self.now() - self.sent[self.answered])
                if event.data != self.expected[self.answered]:
                    self.wrong += 1
                    self.said = self.said or event.opcode is Opcode.TEXT and event.data.decode()
                self.answered += 1
        self.flush()

    def connection_lost(self, _):
        self.opened.set()
        self.closed.set()

    def close(self):
        """Say that no more frames come."""
        if not self.transport.is_closing():
            self.websocket.send_close(1000)
            self.flush()

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


def statistics(url):
    """The server's statistics of the model at a WebSocket's address: (frames, batches)."""
    place = urllib.parse.urlsplit(url)
    stats = place._replace(scheme=place.scheme.replace("ws", "http"), path=place.path.replace("/stream", "/stats"))
    with urllib.request.urlopen(urllib.parse.urlunsplit(stats), timeout=PATIENCE) as reply:
        (found,) = json.load(reply)["model_stats"]
    return found["inference_count"], found["execution_count"]


async def load(url, path, streams, seconds, kill):
    """Send frames in real time, print the results and return whether all replies were right."""
    count, latencies, late = round(seconds / PERIOD), array.array("d"), 0.0
    kinds = list(recordings(path, count))
    before = await asyncio.to_thread(statistics, url)
    stream_url = f"{url}?format=s16&context={CONTEXT}&sr={SAMPLE_RATE}"
    microphones = [
        Microphone(stream_url, *kinds[i % PLACES], random.randrange(count) if i < kill else None, latencies)
        for i in range(streams)
    ]
    place, loop = urllib.parse.urlsplit(url), asyncio.get_running_loop()
    for microphone in microphones:
        await loop.create_connection(lambda microphone=microphone: microphone, place.hostname, place.port)
        await microphone.opened.wait()
        if microphone.websocket.handshake_exc is not None:
            sys.exit(f"the server refused: {microphone.websocket.handshake_exc}")
    now = loop.time
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
    frames, batches = np.subtract(await asyncio.to_thread(statistics, url), before)
    for microphone in microphones:
        microphone.close()
    await asyncio.wait([asyncio.ensure_future(m.closed.wait()) for m in microphones], timeout=PATIENCE)

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
    print(f"batches of the server: {frames / max(batches, 1):.1f} frames in the mean")
    for said in {m.said for m in microphones if m.said and (m.lost or m.wrong)}:
        print(f"the server said: {said}")
    return not lost and not wrong


@click.command()
@click.argument("url")
@click.argument("model")
@click.option("--streams", default=1000, show_default=True, help="Microphones.")
@click.option("--seconds", default=60.0, show_default=True, help="How long each sends.")
@click.option("--kill", default=0, help="So many microphones vanish in the middle, without closing.")
def main(url, model, streams, seconds, kill):
    """Send the sound of many microphones to the WebSocket at URL and compare its replies with MODEL's."""
    sys.exit(0 if asyncio.run(load(url, model, streams, seconds, kill)) else 1)


if __name__ == "__main__":
    main()
