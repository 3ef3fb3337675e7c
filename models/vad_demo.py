"""Find the speech in speech.wav with the published Silero VAD and print it next to the times of the words.

python models/vad_demo.py SILERO_VAD.onnx

The model is for 16 kHz; `make demo` fetches the file.
"""

import json
import pathlib
import sys
import time

import numpy as np

import rnnfast
from rnnfast.cli.input_files import read_wav

FOLDER = pathlib.Path(__file__).parent
SAMPLE_RATE = 16000
CHUNK, CONTEXT = 512, 64  # samples; before each chunk stand the last samples of the chunk before
# These thresholds and times are the defaults of Silero's own functions.
BEGIN, END = 0.5, 0.35  # speech begins at the one probability and ends below the other
SHORTEST, SILENCE, MARGIN = (
    0.25,
    0.1,
    0.03,
)  # seconds: shortest speech, the silence that ends it, what is added on each side
ALLOWED = 0.2  # seconds by which a segment may be off


def chunks(samples):
    """Return each chunk with its context, [chunks, 1, CONTEXT + CHUNK]; the last one is filled up with zeros."""
    padded = np.pad(samples, (CONTEXT, -len(samples) % CHUNK))
    return np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + CHUNK)[::CHUNK, None]


def referenced(model, samples):
    """Return the probability of speech in each chunk by the float64 reference, handing the state from call to call."""
    state, found = np.zeros((2, 1, 128), np.float32), []
    for chunk in chunks(samples):
        outputs = model.reference(input=np.ascontiguousarray(chunk), state=state, sr=SAMPLE_RATE)
        state = outputs["stateN"].astype(np.float32)
        found.append(float(outputs["output"][0, 0]))
    return found


class Segments:
    """Finds segments of speech, (start, end) in seconds, while probabilities come in.

    A segment ends where speech has been unlikely for SILENCE seconds.
    """

    def __init__(self):
        self.chunks, self.start, self.quiet = 0, None, None

    def add(self, probability):
        """Return the segment that is over with this chunk, or None."""
        now = self.chunks * CHUNK / SAMPLE_RATE
        self.chunks += 1
        if probability >= BEGIN:
            self.start, self.quiet = now if self.start is None else self.start, None
        elif probability < END and self.start is not None:
            self.quiet = now if self.quiet is None else self.quiet
            if now - self.quiet >= SILENCE:
                return self._over(self.quiet, now)
        return None

    def finish(self, length):
        """Return the segment that is still open after `length` seconds, or None."""
        return None if self.start is None else self._over(length, length)

    def _over(self, end, length):
        start, self.start, self.quiet = self.start, None, None
        return (max(0, start - MARGIN), min(length, end + MARGIN)) if end - start > SHORTEST else None


def main(path):
    """Find the segments chunk by chunk, and compare step, run and the reference."""
    samples = read_wav(str(FOLDER / "speech.wav"))
    phrases = json.loads((FOLDER / "speech.json").read_text())["phrases"]
    length = len(samples) / SAMPLE_RATE
    model = rnnfast.load(path)
    frames = chunks(samples)
    stream = model.stream(sr=SAMPLE_RATE)
    stream.run(input=frames[:2])  # plans are made before the clock starts
    stream.reset()
    print(f"Silero VAD on speech.wav: {length:.1f} s, {len(frames)} chunks of {1000 * CHUNK // SAMPLE_RATE} ms\n")

    print(f"{'words':24}{'spoken':18}{'found':18}off by  heard at")
    following, good, ours, stepping = Segments(), True, [], 0.0
    waiting = list(phrases)
    for chunk in frames:
        begun = time.perf_counter()
        p = stream.step(input=chunk)
        stepping += time.perf_counter() - begun
        ours.append(float(p[0, 0]))
        good &= shown(following.add(ours[-1]), waiting, len(ours) * CHUNK / SAMPLE_RATE)
    good = shown(following.finish(length), waiting, length) and good and not waiting

    stream.reset()
    begun = time.perf_counter()
    whole = stream.run(input=frames)
    running = time.perf_counter() - begun
    begun = time.perf_counter()
    theirs = referenced(model, samples)
    slow = time.perf_counter() - begun
    print(f"\nstream.step, chunk by chunk: {length / stepping:6.0f} times faster than real time")
    print(
        f"stream.run, all in one call: {length / running:6.0f} times faster than real time, "
        f"{'the same bits' if np.array_equal(np.ravel(whole), np.float32(ours)) else 'OTHER BITS'}"
    )
    print(f"plain NumPy (float64):       {length / slow:6.0f} times faster than real time, the same graph")
    print(f"largest difference between their probabilities: {np.max(np.abs(np.subtract(ours, theirs))):.1e}")
    return 0 if good else f"a segment is more than {ALLOWED} s off the words' times"


def shown(segment, waiting, now):
    """Print a segment next to the phrase whose turn it is; return whether it lies where the phrase was spoken."""
    if segment is None:
        return True
    start, end = segment
    if not waiting:
        print(f"{'(nothing was spoken)':42}{start:5.2f} to {end:5.2f} s")
        return False
    phrase = waiting.pop(0)
    off = max(abs(start - phrase["start"]), abs(end - phrase["end"]))
    words = " ".join(entry["word"] for entry in phrase["words"])
    print(
        f"{words:24}{phrase['start']:5.2f} to {phrase['end']:5.2f} s  {start:5.2f} to {end:5.2f} s  {off:.2f} s  "
        f"{now:5.2f} s",
        flush=True,
    )
    return off <= ALLOWED


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
