"""Find the speech in a thousand WAV files with Silero VAD on Ray Data, and write a Parquet file of what was found.

python models/ray_corpus.py SILERO_VAD.onnx

The files are made from speech.wav: random cuts of 1 to 5 seconds, louder or softer, with noise. `make ray-corpus`
fetches the model and installs what this needs. It uses the cores of this machine or, if RAY_ADDRESS is set, of a
cluster; there FOLDER has to be one that all nodes see, and rnnfast has to be installed on all of them.
"""

import io
import os
import pathlib
import shutil
import sys
import time
import wave

import click
import numpy as np
import pyarrow
import pyarrow.parquet
import ray

import rnnfast
from rnnfast.ray import Map

SOURCE = pathlib.Path(__file__).parent / "speech.wav"
SAMPLE_RATE, CHUNK, CONTEXT = 16000, 512, 64  # before each chunk stand the last samples of the chunk before
CHECKED = 20  # files whose results are compared with those of a stream alone
LEVELS = 10 ** np.linspace(-1.0, 0.3, 14)  # how loud a cut is, next to speech.wav


def read(file):
    """Return the samples of a WAV file or its bytes, float32 in -1 to 1."""
    with wave.open(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as wav:
        return np.frombuffer(wav.readframes(wav.getnframes()), "<i2") / np.float32(2**15)


def make(folder, count):
    """Write `count` files and return their seconds."""
    speech, rng, samples = read(SOURCE), np.random.default_rng(0), 0
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for index in range(count):
        length = int(rng.uniform(1, 5) * SAMPLE_RATE)
        begin = rng.integers(len(speech) - length)
        cut = speech[begin : begin + length] * rng.choice(LEVELS) + rng.normal(0, 0.003, length)
        with wave.open(str(folder / f"{index:05}.wav"), "wb") as wav:
            wav.setparams((1, 2, SAMPLE_RATE, length, "NONE", ""))
            wav.writeframes((np.clip(cut, -1, 1) * (2**15 - 1)).astype("<i2").tobytes())
        samples += length
    return samples / SAMPLE_RATE


def frames(samples):
    """Return each chunk with its context, [chunks, CONTEXT + CHUNK]; the last one is filled up with zeros."""
    padded = np.pad(samples, (CONTEXT, -len(samples) % CHUNK))
    return np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + CHUNK)[::CHUNK]


def decoded(batch):
    """Return a batch of Ray Data with the frames of each file: [chunks, 576], of as many chunks as it has."""
    column = np.empty(len(batch["bytes"]), object)
    for index, file in enumerate(batch["bytes"]):
        column[index] = frames(read(bytes(file)))
    return {"path": batch["path"], "frames": column}


@click.command()
@click.argument("model")
@click.option("--files", default=1000, show_default=True, help="How many files.")
@click.option("--folder", default="build/ray-corpus", show_default=True, help="Where they and the results are.")
def main(model, files, folder):
    """Find the speech in many files."""
    folder = pathlib.Path(folder).absolute()
    seconds = make(folder / "wav", files)
    if "RAY_ADDRESS" in os.environ:
        ray.init(address="auto")
    else:
        ray.init(include_dashboard=False)
    cores = ray.cluster_resources()["CPU"]
    print(f"{files:,} files, {seconds / 3600:.2f} hours of sound, {cores:.0f} cores")

    begun = time.perf_counter()
    corpus = ray.data.read_binary_files(str(folder / "wav"), include_paths=True)
    corpus = corpus.map_batches(decoded, batch_size=128)
    mapped = Map(model, "frames", "speech", keep=["path"], sr=SAMPLE_RATE)
    results = mapped.apply(corpus, batch_size=128)
    shutil.rmtree(folder / "speech", ignore_errors=True)
    results.write_parquet(str(folder / "speech"))
    took = time.perf_counter() - begun
    ray.shutdown()

    table = pyarrow.parquet.read_table(folder / "speech")
    paths, speech = table["path"].to_pylist(), table["speech"].to_pylist()
    likely = sum(p[0] >= 0.5 for probabilities in speech for p in probabilities)
    print(
        f"read, found and written in {took:.1f} s, the start of all processes included: "
        f"{seconds / took:,.0f} times faster than real time"
    )
    print(f"speech in {likely * CHUNK / SAMPLE_RATE / seconds:.0%} of the sound; results in {folder / 'speech'}")

    stream, same = rnnfast.load(model).stream(sr=SAMPLE_RATE), True
    for index in np.linspace(0, files - 1, min(CHECKED, files)).astype(int):
        stream.reset()
        alone = stream.run(input=frames(read(paths[index]))[:, None])
        same &= np.array_equal(np.ravel(alone), np.ravel(np.float32(speech[index])))
    order = paths == sorted(paths) and len(paths) == files
    print(f"rows in the order of the files: {order}; bits of a stream alone: {same}")
    sys.exit(not (same and order))


if __name__ == "__main__":
    main()
