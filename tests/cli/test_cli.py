"""The command: its subcommands, their output, and the messages of wrong use."""

import json
import subprocess
import sys
import wave

import numpy as np
import onnx
import pytest

from rnnfast.errors import InputError
from rnnfast.model import load

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from rnnfast.cli import main
from rnnfast.cli.check import allowed, difference
from rnnfast.cli.input_files import read_wav
from tests.paths import MODELS

AT_16K = ("-i", "rate=16000", "--dim", "samples=512")


def rnnfast(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def refused(result, *words):
    """One line on stderr that has the words, exit status 2, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and result.stderr.count("\n") == 1 and result.stderr.startswith("rnnfast: ")
    for word in words:
        assert word in result.stderr
    return True


def saved(text, folder, **initializers):
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in initializers.items())
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def write_wav(path, samples, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(16000)
        file.writeframes(samples)
    return path


# ------------------------------------------------------------------------------------------------ info
def test_info_shows_what_is_in_a_file():
    result = rnnfast("info", MODELS / "detector.onnx", *AT_16K)
    assert result.exit_code == 0
    for text in (
        "opset ai.onnx 17",
        "audio",
        "tensor(float)",
        "[batch, samples]",
        "rate",
        "probability",
        "[batch, 1]",
        "Conv 2",
        "If 1",
        "LSTM 1",
        "1x16x15",
        "5,592",
    ):
        assert text in result.stdout, text


def test_info_for_programs():
    facts = json.loads(rnnfast("info", MODELS / "tagger.onnx", "--json").stdout)
    assert facts["inputs"] == [
        {"name": "tokens", "type": "tensor(int64)", "shape": ["batch", "time"], "default": False},
        {"name": "lengths", "type": "tensor(int32)", "shape": ["batch"], "default": False},
    ]
    assert facts["operators"]["LSTM"] == 1 and facts["opsets"] == {"ai.onnx": 17} and facts["unsupported"] == []
    assert facts["parameters"] == sum(layer["parameters"] for layer in facts["layers"])


def test_info_shows_what_is_proven(tmp_path):
    assert "batch axes: audio axis 0, rate the same for all -> probability axis 0" in " ".join(
        rnnfast("info", MODELS / "detector.onnx", *AT_16K).stdout.split()
    )
    facts = json.loads(rnnfast("info", MODELS / "tagger.onnx", "--json").stdout)
    assert facts["states"] == {} and facts["idle_state"] is None
    assert facts["batch_axes"] == {"inputs": {"tokens": 0, "lengths": 0}, "outputs": {"tags": 0}, "problem": None}
    assert facts["sequences"] == {"way": "padded", "frames": {"tokens": 1, "tags": 1}, "problem": None}
    facts = json.loads(rnnfast("info", MODELS / "denoiser.onnx", "--json").stdout)
    assert facts["states"] == {"state": "new_state"} and "sequences" not in facts
    file = saved(
        "agraph (float[b,3] x, float[b,3] h) => (float[b,3] y, float[b,3] h_out) "
        "{ m = ReduceMax <axes = [0]> (x)  y = Sub (x, m)  h_out = Identity (h) }",
        tmp_path,
    )
    text = " ".join(rnnfast("info", file).stdout.split())
    assert "states: h -> h_out not a state: h: the output 'h_out' is the input unchanged" in text
    assert "no batch axis: node #0 (ReduceMax): it reduces the tensor along axis 0, along which the rows lie" in text
    facts = json.loads(rnnfast("info", file, "--json").stdout)
    assert facts["batch_axes"]["problem"].startswith("node #0 (ReduceMax)") and not facts["batch_axes"]["inputs"]


def test_info_of_inputs_that_cannot_be_filled(tmp_path):
    file = saved(
        "agraph (seq(float[n]) parts, float x) => (float y, int64 n) { n = SequenceLength(parts)  y = Relu(x) }",
        tmp_path,
    )
    model = onnx.load(file)
    model.graph.input[1].type.tensor_type.ClearField("shape")
    onnx.save(model, file)
    result = rnnfast("info", file)
    assert result.exit_code == 0 and "seq(tensor(float))" in result.stdout
    assert refused(rnnfast("check", file), "parts", "missing")


def test_info_lists_all_that_is_not_supported():
    result = rnnfast("info", MODELS / "refused.onnx")
    assert result.exit_code == 1
    lines = [line for line in result.stdout.splitlines() if line.startswith("not supported")]
    assert len(lines) == 2
    for line, words in zip(lines, [("'y'", "RNN", "activations", "Swish"), ("'image'", "ImageDecoder")]):
        assert all(word in line for word in words), line
    assert len(json.loads(rnnfast("info", MODELS / "refused.onnx", "--json").stdout)["unsupported"]) == 2


def test_names_are_not_taken_for_markup(tmp_path):
    file = saved("agraph (float[n] x) => (float[n] y) { y = Relu(x) }", tmp_path)
    model = onnx.load(file)
    model.graph.input[0].name = model.graph.node[0].input[0] = "[bold]x[/bold]"
    onnx.save(model, file)
    assert "[bold]x[/bold]" in rnnfast("info", file).stdout


@pytest.mark.parametrize("command", ["info", "check", "run"])
def test_wrong_files_are_one_line(command, tmp_path):
    more = ("-o", tmp_path / "out") if command == "run" else ()
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes((MODELS / "tagger.onnx").read_bytes()[:5000])
    assert refused(rnnfast(command, truncated, *more), "truncated.onnx")
    assert refused(rnnfast(command, tmp_path / "none.onnx", *more), "none.onnx")
    assert refused(rnnfast(command, MODELS / "speech.wav", *more), "speech.wav")
    assert command == "info" or refused(rnnfast(command, MODELS / "refused.onnx", *more), "refused.onnx", "Swish")


# ------------------------------------------------------------------------------------------------ check
@pytest.mark.parametrize(
    "name, more",
    [
        ("tagger", ("--dim", "time=9")),
        ("denoiser", ()),
        ("detector", AT_16K),
        ("detector", ("-i", "rate=8000", "--dim", "audio.1=512")),
    ],
)
def test_check_passes(name, more):
    result = rnnfast("check", MODELS / f"{name}.onnx", *more)
    assert result.exit_code == 0 and " ok" in result.stdout and "FAILED" not in result.stdout


def test_check_for_programs():
    facts = json.loads(rnnfast("check", MODELS / "denoiser.onnx", "--dim", "batch=3", "--json").stdout)
    assert facts["passed"] and [row["name"] for row in facts["outputs"]] == ["gains", "new_state"]
    assert facts["outputs"][0]["shapes"] == [[3, 22]]
    assert 0 < facts["outputs"][1]["reference"] < 1e-5


def test_check_fails_over_tolerance():
    result = rnnfast("check", MODELS / "denoiser.onnx", "--tolerance", "1e-12")
    assert result.exit_code == 1 and "FAILED" in result.stdout


@pytest.mark.parametrize("dtype, unit", [("float16", 2.0**-10), ("bfloat16", 2.0**-7)])
def test_results_of_16_bits_may_differ_by_one_unit(dtype, unit):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype) if dtype == "bfloat16" else dtype)
    expected = np.array([8.0, 1.5]).astype(dtype)
    assert difference([np.array([8 + 8 * unit, 1.5]).astype(dtype)], [expected]) <= allowed([expected], 1e-4)
    assert difference([np.array([8 + 16 * unit, 1.5]).astype(dtype)], [expected]) > allowed([expected], 1e-4)
    assert allowed([expected.astype(np.float32)], 1e-4) == 8e-4
    assert allowed([], 1e-4) == allowed([expected[:0]], 1e-4) == 1e-4


def test_check_fails_for_nan(tmp_path):
    file = saved("agraph (float[n] x) => (float[n] y) { y = Sqrt(x) }", tmp_path)
    np.save(tmp_path / "x.npy", np.array([1, -1], np.float32))
    result = rnnfast("check", file, "--json", "-i", f"x={tmp_path / 'x.npy'}")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout, parse_constant=pytest.fail)["outputs"]
    assert row["reference"] == "nan" and not row["passed"]


def test_check_fails_for_infinity_in_one_place(tmp_path):
    file = saved("agraph (float[n] x) => (float[n] y) { y = Exp(x) }", tmp_path)
    np.save(tmp_path / "x.npy", np.array([0, 100], np.float32))  # float32 ends at 88.7
    assert rnnfast("check", file, "-i", f"x={tmp_path / 'x.npy'}").exit_code == 1


def test_check_is_seeded():
    first, same, other = (rnnfast("check", MODELS / "denoiser.onnx", "--json", "--seed", n).stdout for n in (3, 3, 4))
    assert first == same != other


def test_difference():
    nan, inf = np.array([np.nan]), np.array([np.inf])
    assert difference([np.array([1, 5])], [np.array([2, 3])]) == 2
    assert difference([inf], [inf]) == 0 and difference([inf], [-inf]) == np.inf
    assert np.isnan(difference([nan], [nan])) and np.isnan(difference([np.zeros(1), nan], [np.ones(1), nan]))
    assert difference([np.array(["a"], object)], [np.array(["a"], object)]) == 0
    assert difference([np.array(["a"], object)], [np.array(["b"], object)]) == np.inf
    assert difference([np.zeros((2, 0))], [np.zeros((0, 2))]) == np.inf and difference([], []) == 0


def test_weights_are_rounded(tmp_path):
    """Differences are to the weights that the file has; what is written is what a model with the type computes."""
    file = MODELS / "languages.onnx"
    rows = {}
    np.savez(tmp_path / "in.npz", x=np.array([[3, 1, 4, 1, 5]]), lengths=np.array([5], np.int32))
    for options in ((), ("--weights", "fp16"), ("--weights", "int8"), ("--weights", "int8", "--activations", "8")):
        result = rnnfast("check", file, "-i", tmp_path / "in.npz", *options, "--tolerance", "1e-6", "--json")
        rows[options] = json.loads(result.stdout)["outputs"][0]["reference"]
        assert result.exit_code == bool(options)
        assert rnnfast("check", file, "-i", tmp_path / "in.npz", *options, "--tolerance", "0.5").exit_code == 0
        assert rnnfast("run", file, "-i", tmp_path / "in.npz", *options, "-o", tmp_path / "out").exit_code == 0
        model = load(file, weights=options[1] if options else None, activations=8 if "8" in options else 15)
        np.testing.assert_array_equal(np.load(tmp_path / "out" / "y.npy"), model(np.load(tmp_path / "in.npz")).y)
    plain, half, whole = (rows[options] for options in list(rows)[:3])
    assert plain < 1e-5 < half < whole / 5
    result = rnnfast("info", file, "--weights", "bf16")
    assert result.exit_code == 0 and "Gemm" in result.stdout and result.stdout.count("bf16") == 2
    result = rnnfast("run", file, "-i", tmp_path / "in.npz", "--activations", "8", "-o", tmp_path / "out")
    assert refused(result, "activations is 8 with weights None")


@pytest.mark.parametrize(
    "option, words",
    [
        (("--dim", "time"), ("--dim", "time")),
        (("--dim", "time=x"), ("--dim",)),
        (("--dim", "frames=3"), ("frames",)),
        (("--dim", "time=99999999999"), ("large", "limit")),
        (("-i", "tokens=1"), ("tokens", "shape")),
        (("-i", "words=1"), ("words", "tokens")),
        (("-i", "tokens=many"), ("tokens=many",)),
        (("-i", "1"), ("NAME=VALUE",)),
        (("-i", "tokens=1", "-i", "tokens=2"), ("twice",)),
    ],
)
def test_wrong_options_are_one_line(option, words):
    result = rnnfast("check", MODELS / "tagger.onnx", *option)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and any(word in result.stderr for word in words)


# ------------------------------------------------------------------------------------------------ run
def test_run_writes_the_outputs(tmp_path):
    feed = {"tokens": np.array([[3, 1, 4], [1, 5, 9]]), "lengths": np.array([3, 2], np.int32)}
    np.savez(tmp_path / "feed.npz", **feed)
    result = rnnfast("run", MODELS / "tagger.onnx", "-i", tmp_path / "feed.npz", "-o", tmp_path / "new" / "out")
    assert result.exit_code == 0 and "tags.npy" in result.stdout
    expected = load(MODELS / "tagger.onnx")(feed)["tags"]
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "out" / "tags.npy"), expected)
    assert [p.name for p in (tmp_path / "new" / "out").iterdir()] == ["tags.npy"]


def test_run_reads_npy_wav_and_numbers(tmp_path):
    samples = (np.random.default_rng(0).uniform(-1, 1, 600) * 32767).astype("<i2")
    wav = write_wav(tmp_path / "a.wav", samples.tobytes())
    np.save(tmp_path / "a.npy", (samples / 32768).astype(np.float32)[None])
    for value in (wav, tmp_path / "a.npy"):
        result = rnnfast(
            "run",
            MODELS / "detector.onnx",
            "-i",
            f"audio={value}",
            "-i",
            "rate=8000",
            "-o",
            tmp_path / value.suffix,
            *(("--threads", 2) if value == wav else ()),
        )
        assert result.exit_code == 0, result.output
    a, b = (np.load(tmp_path / suffix / "probability.npy") for suffix in (".wav", ".npy"))
    np.testing.assert_array_equal(a, b)


def test_nothing_is_written_where_something_is_wrong(tmp_path):
    np.save(tmp_path / "bands.npy", np.zeros((2, 22), np.float32))
    np.save(tmp_path / "state.npy", np.zeros((1, 3, 32), np.float32))
    result = rnnfast(
        "run",
        MODELS / "denoiser.onnx",
        "-i",
        f"bands={tmp_path / 'bands.npy'}",
        "-i",
        f"state={tmp_path / 'state.npy'}",
        "-o",
        tmp_path / "out",
    )
    assert refused(result, "initial_h") and not (tmp_path / "out").exists()
    np.save(tmp_path / "state.npy", np.zeros((1, 2, 32), np.float32))
    (tmp_path / "out" / "new_state.npy").mkdir(parents=True)
    result = rnnfast(
        "run",
        MODELS / "denoiser.onnx",
        "-i",
        f"bands={tmp_path / 'bands.npy'}",
        "-i",
        f"state={tmp_path / 'state.npy'}",
        "-o",
        tmp_path / "out",
    )
    assert refused(result, "new_state.npy") and [p.name for p in (tmp_path / "out").iterdir()] == ["new_state.npy"]


def test_sequences_and_odd_names(tmp_path):
    file = saved(
        "agraph (float[n] x) => (seq(float[m]) parts, float[n] y) { parts = SplitToSequence<axis = 0>(x, two)"
        "  y = Relu(x) }",
        tmp_path,
        two=np.array(2),
    )
    model = onnx.load(file)
    model.graph.output[1].name = model.graph.node[1].output[0] = "../a/b:0"
    onnx.save(model, file)
    np.save(tmp_path / "x.npy", np.arange(5, dtype=np.float32))
    result = rnnfast("run", file, "-i", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [".._a_b_0.npy", "parts.0.npy", "parts.1.npy", "parts.2.npy"]
    assert np.load(tmp_path / "out" / "parts.1.npy").tolist() == [2, 3]


def test_files_that_are_not_what_they_say(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"no array")
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    for given in ("tokens=x.npy", "x.npz", "tokens=x.wav", "tokens=objects.npy", "tokens=none.npy", "tokens=none.npz"):
        name, equals, file = given.rpartition("=")
        given = f"{name}{equals}{tmp_path / file}"
        assert refused(rnnfast("run", MODELS / "tagger.onnx", "-i", given, "-o", tmp_path / "out"), file)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "width, raw, expected",
    [
        (1, bytes([0, 64, 128, 255]), [-1, -0.5, 0, 127 / 128]),
        (2, np.array([-32768, 0, 1, 32767], "<i2").tobytes(), [-1, 0, 2**-15, 1 - 2**-15]),
        (3, b"\x00\x00\x80\x01\x00\x00\xff\xff\x7f", [-1, 2**-23, 1 - 2**-23]),
        (4, np.array([-(2**31), 2**30], "<i4").tobytes(), [-1, 0.5]),
    ],
)
def test_wav_of_every_width(width, raw, expected, tmp_path):
    samples = read_wav(str(write_wav(tmp_path / "x.wav", raw, width)))
    assert samples.dtype == np.float32 and samples.tolist() == np.float32(expected).tolist()


def test_wav_with_two_channels(tmp_path):
    path = write_wav(tmp_path / "x.wav", bytes(8), channels=2)
    with pytest.raises(InputError, match="2 channels"):
        read_wav(str(path))


# ------------------------------------------------------------------------------------------------ the command itself
def test_module_runs():
    result = subprocess.run([sys.executable, "-m", "rnnfast", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("rnnfast, version ")


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_missing_package_is_named(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import rnnfast.cli"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip() == f"rnnfast: the command line needs {missing}: pip install 'rnnfast[cli]'"
