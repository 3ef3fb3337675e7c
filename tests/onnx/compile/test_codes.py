"""The emitters write the codes, types and limits that the header program.h declares."""

import re
from pathlib import Path

import numpy as np
import pytest

from rnnfast.native import _kernels, _programs
from rnnfast.onnx.compile import expressions, indexing, integer, reduction

KERNELS = Path(__file__).parents[3] / "rnnfast" / "kernels"
TYPES = {
    name.upper(): np.dtype(name) for name in ("float32", "bool", "int8", "uint8", "int16", "uint16", "int32", "int64")
}


def enums(header):
    """Return {name: value} of all enumerators of a header."""
    path = KERNELS / header
    if not path.exists():
        pytest.skip(f"{path} is not there: this is no checkout")
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.DOTALL)
    values = {}
    for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", text):
        value = -1
        for item in filter(None, map(str.strip, body.split(","))):
            name, _, given = map(str.strip, item.partition("="))
            if not given:
                value += 1
            else:
                value = values[given] if given in values else int(given, 0)
            values[name] = value
    return values


@pytest.fixture(scope="module")
def program():
    return enums("program.h")


def with_prefix(values, prefix):
    """Return {name without the prefix: value} of the enumerators with a prefix, of which there must be some."""
    codes = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    assert codes, f"no enumerator begins with {prefix}"
    return codes


@pytest.mark.parametrize(
    "prefix, module",
    [("E_", expressions), ("I_", integer), ("REDUCE_", reduction), ("FINISH_", reduction), ("ROWS_", reduction)],
)
def test_codes(program, prefix, module):
    codes = with_prefix(program, prefix)
    assert {name: getattr(module, name, None) for name in codes} == codes


def test_every_instruction_has_a_name(program):
    activations = with_prefix(enums("kernels.h"), "ACT_")
    instructions = with_prefix(program, "E_")
    assert set(_kernels.FUNCTIONS.values()) <= set(activations.values())
    assert max(activations.values()) < min(instructions.values())
    assert set(expressions.NAMES) == set(instructions.values()) | set(_kernels.FUNCTIONS.values())


def test_types(program):
    assert {TYPES[name]: value for name, value in with_prefix(program, "INTEGER_").items()} == integer.ITEMS
    assert {name.lower(): value for name, value in with_prefix(program, "ITEM_").items()} == expressions.ITEMS


def test_types_of_the_order_command(program):
    codes = with_prefix(program, "INTEGER_") | with_prefix(program, "ORDER_")
    assert {TYPES[name]: value for name, value in codes.items()} == indexing.ORDERED


def test_limits(program):
    assert program["REGISTERS"] == expressions.REGISTERS
    assert _programs.LIMITS == {"axes": program["AXES"], "buffers": program["MAX_BUFFERS"], "rank": program["MAX_RANK"]}
