"""`python -m bench.lengths`: a tagger whose calls all have another length, next to onnxruntime, on one thread each.

The tagger is an embedding, two bidirectional LSTM layers and a dense layer, in three sizes. A new model gets 1,000
calls of random lengths; then the same calls come again, when each length has its plan.
"""

import pathlib
import sys
import tempfile

import click
import numpy as np

from bench import environment

SIZES = {"small": (32, 32), "medium": (64, 64), "large": (128, 128)}  # name -> embedding size, hidden size
WORDS, TAGS = 1000, 17


def tagger(embedding, hidden):
    """Return the bytes of a tagger of [batch, time] words; its lengths have no place in the file."""
    import onnx
    from onnx import numpy_helper

    rng = np.random.default_rng(0)

    def weights(*shape):
        return rng.uniform(-0.1, 0.1, shape).astype(np.float32)

    constants = {"words": weights(WORDS, embedding), "flat": np.array([0, 0, 2 * hidden]), "bias": weights(TAGS)}
    constants["tags"] = weights(2 * hidden, TAGS)
    text, x = f"g (int64[batch, time] x) => (float[time, batch, {TAGS}] y) {{ e = Gather (words, x)", "s0"
    text += " s0 = Transpose <perm = [1, 0, 2]> (e)"
    for layer, inputs in enumerate((embedding, 2 * hidden)):
        constants[f"W{layer}"] = weights(2, 4 * hidden, inputs)
        constants[f"R{layer}"] = weights(2, 4 * hidden, hidden)
        constants[f"B{layer}"] = weights(2, 8 * hidden)
        text += f""" h{layer} = LSTM <hidden_size = {hidden}, direction = "bidirectional">
            ({x}, W{layer}, R{layer}, B{layer})
            t{layer} = Transpose <perm = [0, 2, 1, 3]> (h{layer})  f{layer} = Reshape (t{layer}, flat)"""
        x = f"f{layer}"
    text += f" p = MatMul ({x}, tags)  q = Add (p, bias)  y = LogSoftmax <axis = -1> (q) }}"
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return model.SerializeToString()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--lengths", default="1-500", show_default=True, metavar="A-B")
def main(lengths):
    """Measure taggers at calls of random lengths next to onnxruntime."""
    from rnnfast.cli import main as command

    machine = environment.machine()
    click.echo(", ".join(f"{key}: {value}" for key, value in machine.items()))
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in SIZES.items():
            file = pathlib.Path(folder) / f"{name}.onnx"
            file.write_bytes(tagger(*sizes))
            args = ["bench", str(file), "--lengths", lengths, "--against", "onnxruntime"]
            failed |= bool(command.main(args, standalone_mode=False))
    sys.exit(failed)


if __name__ == "__main__":
    main()
