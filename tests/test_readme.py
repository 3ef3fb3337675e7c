"""Every command and every output in README.md, and what moved from it to the pages in docs.

tests/docs runs what the other pages show, and follows the links of all.
"""

import doctest
import os
import re
import shlex
import subprocess
import sys

import pytest

import rnnfast
from rnnfast.onnx.ops import MODULES, table
from tests.paths import ROOT

TEXT = (ROOT / "README.md").read_text()
# (command, what it prints) of each "$ command" in the console blocks
COMMANDS = [
    (command, output)
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.S)
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)
]
SILERO = ROOT / "build" / "silero_vad" / "data" / "silero_vad.onnx"


def comparable(text):
    """The lines of a text without what differs from machine to machine.

    That is numbers with a point or an exponent, and the width of columns.
    """
    text = re.sub(r"-?\d+\.\d+(e[-+]\d+)?|\d+e[-+]\d+|\b\d+(?= times faster)|(?<= )0(?= +ok)", "N", text)
    return [re.sub(r"[─-]{4,}", "-", re.sub(r" +", " ", line)).strip() for line in text.strip().splitlines()]


def test_python(monkeypatch):
    """The examples, which run from the top of a checkout."""
    monkeypatch.chdir(ROOT)
    failed, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert failed == 0 and attempted > 15


def test_a_layer_in_autograd():
    """The class of docs/howto/autograd.md gives torch's own gradients of an LSTM, its input's too."""
    torch = pytest.importorskip("torch")
    page = (ROOT / "docs" / "howto" / "autograd.md").read_text()
    block = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "autograd.Function" in block)
    names = {}
    exec(block, names)
    other = torch.nn.LSTM(5, 7)
    layer = rnnfast.nn.LSTM(5, 7)
    layer.load_state_dict({name: value.detach() for name, value in other.state_dict().items()})
    x = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(1))
    mine, weights = x.clone().requires_grad_(), [w.detach().clone().requires_grad_() for w in other.parameters()]
    assert [name for name, _ in other.named_parameters()] == list(layer.state_dict())
    (names["Layer"].apply(mine, layer, *weights) ** 2).sum().backward()
    theirs = x.clone().requires_grad_()
    (other(theirs)[0] ** 2).sum().backward()
    for a, b in zip([mine, *weights], [theirs, *other.parameters()], strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("command, output", COMMANDS, ids=[command for command, _ in COMMANDS])
def test_command(command, output, tmp_path):
    """A command prints what the README shows, and nothing on standard error."""
    command, _, kept = command.partition(" | grep ")
    if command == "make demo":
        if not SILERO.exists():
            pytest.skip("make demo has not fetched the model")
        command = f"models/vad_demo.py {SILERO}"
    else:
        pytest.importorskip("rich")
        pytest.importorskip("onnxruntime")
        command = f"-m {command}"
    (tmp_path / "models").symlink_to(ROOT / "models")
    result = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.stderr == ""
    printed = [line for line in result.stdout.splitlines(keepends=True) if kept.strip("'") in line]
    assert comparable("".join(printed)) == comparable(output)


def test_operators():
    """The table in docs/operators.md has every operator of the code, and no other."""
    page = (ROOT / "docs" / "operators.md").read_text()
    groups = dict(re.findall(r"^\| (\w+) \| ([\w., ]+) \|$", page, re.M))
    del groups["group"]
    assert sorted(groups) == sorted(MODULES)
    listed = [name for names in groups.values() for name in names.split(", ")]
    assert sorted(listed) == sorted(".".join(filter(None, key)) for key in table())
