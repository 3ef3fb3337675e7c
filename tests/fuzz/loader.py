"""Coverage-guided fuzzing of the loader by Atheris (`pip install atheris`), with files of the fuzzer as a beginning.

`python -m tests.fuzz.loader FOLDER -max_total_time=600` takes the options of libFuzzer; FOLDER keeps files that reach
new code.
"""

import contextlib
import pathlib
import sys

import atheris

with atheris.instrument_imports(include=["rnnfast"]):
    import rnnfast
    from rnnfast.onnx import graph  # noqa: F401 the loader is imported when first needed, which instruments nothing

from tests.fuzz.graphs import random_model

BEGINNINGS = 200


def load(data):
    """Load some bytes, which must do that or raise an Error."""
    with contextlib.suppress(rnnfast.Error):
        rnnfast.load(data)


def main():
    folder = next((pathlib.Path(a) for a in sys.argv[1:] if not a.startswith("-")), None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(BEGINNINGS):
            (folder / f"seed-{seed}").write_bytes(random_model(seed, nodes=4)[0].SerializeToString())
    atheris.Setup(sys.argv, load)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
