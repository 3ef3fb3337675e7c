"""Finds the speech in speech.wav with the published Silero VAD, next to the times of the words.

python models/vad_demo.py SILERO_VAD.onnx        (16 kHz; `make demo` fetches the file)
"""
import json
import pathlib
import sys
import time

import numpy as np

import rnnfast
from rnnfast.cli.values import read_wav

FOLDER = pathlib.Path(__file__).parent
SAMPLE_RATE = 16000
CHUNK, CONTEXT = 512, 64            # samples; each chunk is led by the end of the one before
# The thresholds and times that Silero's own functions have as defaults.
BEGIN, END = 0.5, 0.35              # probabilities where speech begins and ends: between them it goes on
SHORTEST, SILENCE, MARGIN = 0.25, 0.1, 0.03     # seconds: of speech, of the silence that ends it, added around it
ALLOWED = 0.2                       # seconds that a segment may be off


def probabilities(run, samples):
    """That there is speech, of each chunk; run(input=, state=, sr=) is the model."""
    padded = np.pad(samples, (CONTEXT, -len(samples) % CHUNK))
    state, found = np.zeros((2, 1, 128), np.float32), []
    for start in range(0, len(padded) - CONTEXT, CHUNK):
        outputs = run(input=padded[None, start:start + CONTEXT + CHUNK], state=state, sr=SAMPLE_RATE)
        state = outputs["stateN"].astype(np.float32, copy=False)
        found.append(float(outputs["output"][0, 0]))
    return found


def segments(probabilities, length):
    """(start, end) in seconds of the speech in `length` seconds: it ends where it has been unlikely for SILENCE."""
    found, start, quiet = [], None, None
    for i, probability in enumerate(probabilities):
        now = i * CHUNK / SAMPLE_RATE
        if probability >= BEGIN:
            start, quiet = now if start is None else start, None
        elif probability < END and start is not None:
            quiet = now if quiet is None else quiet
            if now - quiet >= SILENCE:
                found.append((start, quiet))
                start = quiet = None
    if start is not None:
        found.append((start, length))
    return [(max(0, a - MARGIN), min(length, b + MARGIN)) for a, b in found if b - a > SHORTEST]


def timed(run, samples):
    """(probabilities, seconds), once everything has run once."""
    probabilities(run, samples[:2 * CHUNK])
    begun = time.perf_counter()
    return probabilities(run, samples), time.perf_counter() - begun


def main(path):
    samples = read_wav(str(FOLDER / "speech.wav"))
    phrases = json.loads((FOLDER / "speech.json").read_text())["phrases"]
    length = len(samples) / SAMPLE_RATE
    model = rnnfast.load(path)
    ours, seconds = timed(model, samples)
    theirs, slow_seconds = timed(model.reference, samples)

    found = segments(ours, length)
    print(f"Silero VAD on speech.wav: {length:.1f} s, {len(ours)} chunks of {1000 * CHUNK // SAMPLE_RATE} ms\n")
    print(f"{'words':24}{'spoken':18}{'found':18}off by")
    good = len(found) == len(phrases)
    for phrase, (start, end) in zip(phrases, found):
        off = max(abs(start - phrase["start"]), abs(end - phrase["end"]))
        good = good and off <= ALLOWED
        words = " ".join(entry["word"] for entry in phrase["words"])
        print(f"{words:24}{phrase['start']:5.2f} to {phrase['end']:5.2f} s  {start:5.2f} to {end:5.2f} s  {off:.2f} s")
    if len(found) != len(phrases):
        print(f"{len(found)} segments found, {len(phrases)} phrases spoken: {found}")
    print(f"\nrnnfast:               {length / seconds:6.0f} times faster than real time")
    print(f"plain NumPy (float64): {length / slow_seconds:6.0f} times faster than real time, the same graph")
    print(f"largest difference between their probabilities: {np.max(np.abs(np.subtract(ours, theirs))):.1e}")
    return 0 if good else f"a segment is more than {ALLOWED} s off the words' times"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
