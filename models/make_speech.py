"""Write speech.wav and speech.json: words spoken by espeak-ng at known times, with pauses and faint noise.

Each word is synthesised alone, cut to where it is heard and put at its place, so that its times are exact. This needs
espeak-ng, NumPy and SciPy; its results are kept in the repository, so that nobody else needs these.
"""

import io
import json
import pathlib
import subprocess
import wave

import numpy as np
from scipy.signal import resample_poly

SAMPLE_RATE = 16000
ESPEAK_RATE = 22050
# The voice, the seconds of pause before the phrase, and its words.
PHRASES = [
    ("en-us+m7", 0.7, ["seven", "small", "boats"]),
    ("en-us+f3", 1.1, ["good", "morning"]),
    ("en-us+m7", 0.8, ["recurrent", "networks"]),
    ("en-us+f3", 1.3, ["remember", "everything"]),
]
LAST_PAUSE = 0.8
WORD_GAP = 0.03  # less than the 0.1 s of silence that ends a segment
FRAME = 160  # samples, 10 ms; silence at a word's ends is cut in frames
HEARD = 0.03  # a frame is silent below this share of the loudest frame's loudness
SPEECH_RMS = 0.1
NOISE_RMS = 0.001  # -40 dB


def spoken(word, voice):
    """Return the samples of a word from its first to its last audible frame; all words are equally loud."""
    command = ["espeak-ng", "-v", voice, "-s", "160", "--stdout", word]
    with wave.open(io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout)) as file:
        # The header of a stream does not know its length, so this reads until the end.
        samples = np.frombuffer(file.readframes(10 * ESPEAK_RATE), "<i2").astype(float)
    samples = resample_poly(samples, SAMPLE_RATE // 50, ESPEAK_RATE // 50)
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    loudness = np.sqrt((frames**2).mean(axis=1))
    first, *_, last = np.flatnonzero(loudness > HEARD * loudness.max())
    heard = frames[first : last + 1].ravel()
    return heard * (SPEECH_RMS / np.sqrt((heard**2).mean()))


def assemble():
    """Return the samples, in [-1, 1], and the phrases with the times of their words."""
    parts, phrases, now = [], [], 0

    def put(samples):
        """Append samples and return where they begin and end, in seconds."""
        nonlocal now
        parts.append(samples)
        now += len(samples)
        return (now - len(samples)) / SAMPLE_RATE, now / SAMPLE_RATE

    for voice, pause, words in PHRASES:
        put(np.zeros(round(pause * SAMPLE_RATE)))
        times = []
        for i, word in enumerate(words):
            if i:
                put(np.zeros(round(WORD_GAP * SAMPLE_RATE)))
            start, end = put(spoken(word, voice))
            times.append({"word": word, "start": start, "end": end})
        phrases.append({"start": times[0]["start"], "end": times[-1]["end"], "words": times})
    put(np.zeros(round(LAST_PAUSE * SAMPLE_RATE)))
    speech = np.concatenate(parts)
    return speech + np.random.default_rng(0).normal(scale=NOISE_RMS, size=len(speech)), phrases


def main():
    """Write both files."""
    folder = pathlib.Path(__file__).parent
    samples, phrases = assemble()
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())
    (folder / "speech.json").write_text(json.dumps({"sample_rate": SAMPLE_RATE, "phrases": phrases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
