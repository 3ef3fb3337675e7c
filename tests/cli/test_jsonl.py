"""`rnnfast run --jsonl`: a line in, a line out, in order."""

import json

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

import rnnfast
from rnnfast.cli import jsonl, main
from tests.cli.test_cli import saved
from tests.paths import MODELS

TAGGER = MODELS / "tagger.onnx"


def run(*args, text=None):
    return CliRunner().invoke(main, ["run", *(str(a) for a in args)], input=text)


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def same(text, expected):
    """The lines have these tags, bit for bit."""
    lines = lines_of(text)
    found = [np.array(line.pop("tags"), np.float32) for line in lines]
    return not any(lines) and [y.tobytes() for y in found] == [y.tobytes() for y in expected]


def sentences(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 9, n).tolist() for n in rng.integers(1, 20, count)]


@pytest.mark.parametrize("threads", [1, 2])
def test_lines(threads, tmp_path):
    """Arrays and objects from a file or stdin, to a file or stdout."""
    model, words = rnnfast.load(TAGGER), sentences(50)
    text = "".join(json.dumps({"tokens": w} if i % 2 else w) + "\n" for i, w in enumerate(words))
    expected = [model(tokens=[w], lengths=[len(w)]).tags[0] for w in words]
    (tmp_path / "in.jsonl").write_text(text)
    options = ("--jsonl", tmp_path / "in.jsonl", "--threads", threads)
    result = run(TAGGER, *options)
    assert result.exit_code == 0 and result.stderr == ""
    assert same(result.stdout, expected)
    assert same(run(TAGGER, "--jsonl", "-", text=text.rstrip()).stdout, expected)
    result = run(TAGGER, *options, "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 0 and result.output == ""
    assert same((tmp_path / "out.jsonl").read_text(), expected)
    assert run(TAGGER, "--jsonl", "-", text="").stdout == ""


def test_values(tmp_path):
    """Several outputs, numbers that JSON lacks, float16, and inputs of all lines."""
    file = saved(
        """g (float[batch,n] x, float scale) => (float[batch,n] y, float16[batch,n] z, bool[batch,n] b) {
        y = Div (x, scale)  z = Cast <to = 10> (y)  b = Less (x, scale) }""",
        tmp_path,
    )
    result = run(file, "--jsonl", "-", "-i", "scale=0", text="[1, -1, 0.5]\n[0]\n")
    assert result.stdout == (
        '{"y": [Infinity, -Infinity, Infinity], "z": [Infinity, -Infinity, Infinity], "b": [false, true, false]}\n'
        '{"y": [NaN], "z": [NaN], "b": [false]}\n'
    )
    assert run(file, "--jsonl", "-", text='{"x": [1], "scale": 3}\n').stdout == (
        '{"y": [0.333333343], "z": [0.333251953], "b": [true]}\n'
    )


def test_text_and_states(tmp_path):
    """Strings come back as they are; of a model with states a line has the results of its frames."""
    file = saved("g (string[batch,n] x) => (string[batch,n] y) { y = Identity (x) }", tmp_path)
    assert run(file, "--jsonl", "-", text='["é", "\\ud800"]\n').stdout_bytes.startswith('{"y": ["é", "'.encode())
    bands = np.zeros((3, 22), np.float32)
    denoiser = rnnfast.load(MODELS / "denoiser.onnx")
    name = next(v.name for v in denoiser.outputs if "gains" in v.name)
    line = json.dumps(bands[:, : denoiser.inputs[0].type.shape[-1]].tolist())
    (found,) = lines_of(run(MODELS / "denoiser.onnx", "--jsonl", "-", text=line).stdout)
    assert list(found) == [name] and len(found[name]) == 3


@pytest.mark.parametrize(
    "line, words",
    [
        ("[1, 2", "Expecting"),
        ("", "empty"),
        ("3", "a int, expected"),
        ('"abc"', "a str, expected"),
        ("null", "NoneType"),
        ('{"tokens": [1], "tokens": [2]}', "'tokens' is given twice"),
        ('{"words": [1]}', "'words'"),
        ("[1.5]", "int64"),
        ("[[1], [2, 3]]", "no array"),
        ("[100000]", "100000"),
        ("[" * 100_000, "nested too deeply"),
        ("[1e999]", "int64"),
    ],
)
def test_a_bad_line(line, words, tmp_path):
    """The first bad line is an error that names it; the lines before it are printed, but no file is written."""
    text = f"[1, 2]\n[3]\n{line}\n[4]\nno JSON\n"
    result = run(TAGGER, "--jsonl", "-", text=text)
    assert result.exit_code == 2 and len(lines_of(result.stdout)) == 2
    assert result.stderr.startswith("rnnfast: stdin: line 3: ") and result.stderr.count("\n") == 1
    assert words in result.stderr
    (tmp_path / "in.jsonl").write_text(text)
    result = run(TAGGER, "--jsonl", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 2 and f"{tmp_path / 'in.jsonl'}: line 3: " in result.stderr
    assert "cannot be written" not in result.stderr and not (tmp_path / "out.jsonl").exists()


def test_bytes_of_a_line(monkeypatch):
    """A file without ends of lines, or that is no text, does not fill the memory."""
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 10)
    result = run(TAGGER, "--jsonl", "-", text="[1]\n[1, 2, 3, 4, 5]\n")
    assert "stdin: line 2: more than 10 bytes" in result.stderr and len(lines_of(result.stdout)) == 1
    result = CliRunner().invoke(main, ["run", str(TAGGER), "--jsonl", "-"], input=b"\xff\xfe[\n")
    assert result.exit_code == 2 and "stdin: line 1: " in result.stderr


def test_wrong_use(tmp_path):
    """Files that are not there or no regular ones, a folder as the file of results, and no output without lines."""
    for path, words in ((tmp_path / "none", "No such file"), (tmp_path, str(tmp_path))):
        result = run(TAGGER, "--jsonl", path)
        assert result.exit_code == 2 and words in result.stderr
    result = run(TAGGER, "--jsonl", "-", "-o", tmp_path, text="[1]\n")
    assert result.exit_code == 2 and "cannot be written" in result.stderr
    result = run(TAGGER, "--jsonl", "-", "-i", "tokens=3", text="[1]\n")
    assert result.exit_code == 2 and "tokens" in result.stderr
    result = run(TAGGER)
    assert result.exit_code == 2 and "Missing option '-o' / '--output'" in result.stderr
