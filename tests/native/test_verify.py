"""The verifier of native programs finds any word that makes a command reach outside of its buffers."""

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.native._programs import NativeProgram
from rnnfast.native.verify import CHECKS, NAMES, CorruptProgram, verify
from tests.graphs import parse


def random(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


LOOP = """y = Loop (n, , x) <body = b (int64 i, bool c, float[m,k] s) => (bool d, float[m,k] t) {
    d = Identity (c)  t = Tanh (s) }>"""
# For each command a body of a graph of x [6, 8] whose program has it, and its constants.
BODIES = {
    "copy": ("t = Transpose (x)  y = Reshape (t, n)", {"n": np.array([-1])}),
    "elementwise": ("y = Tanh (x)", {}),
    "reduce": ("y = ReduceSum <keepdims = 1> (x, a)", {"a": np.array([1])}),
    "rows": ("y = Softmax (x)", {}),
    "gather": ("y = Gather (x, i)", {"i": np.array([5, 0, -1])}),
    "order": ("y, i = TopK <axis = 1> (x, k)", {"k": np.array([3])}),
    "integer": ("a = Shape (x)  b = ArgMax (x)  y = Add (b, b)", {}),
    "running": ("y = CumSum (x, a)", {"a": np.array(1)}),
    "product": ("y = MatMul (x, w)", {"w": random(8, 20)}),
    "multiply": ("t = Transpose (x)  y = MatMul (x, t)", {}),
    "loop": (LOOP, {"n": np.array(4)}),
    "branch": (
        "s = ReduceSum <keepdims = 0> (x)  c = Greater (s, z)  y = If (c) <"
        "then_branch = g () => (float[m,k] p) { p = Tanh (x) }, else_branch = g () => (float[m,k] q) { q = Neg (x) }>",
        {"z": np.float32(0)},
    ),
    "convolution": ("v = Reshape (x, n)  y = Conv (v, w)", {"n": np.array([1, 6, 8, 1]), "w": random(3, 6, 3, 1)}),
    "convolved": (
        "v = Reshape (x, n)  c = Conv (v, w)  y = Relu (c)",
        {"n": np.array([1, 2, 6, 4]), "w": random(6000, 2, 3, 3)},
    ),
    "depthwise": (
        "v = Reshape (x, n)  y = Conv <group = 6> (v, w)",
        {"n": np.array([1, 6, 8, 1]), "w": random(6, 1, 3, 1)},
    ),
    "pool": ("v = Reshape (x, n)  y = MaxPool <kernel_shape = [3]> (v)", {"n": np.array([1, 6, 8])}),
    "recurrent": (
        "v = Reshape (x, n)  y, h = GRU <hidden_size = 5> (v, w, r)",
        {"n": np.array([6, 1, 8]), "w": random(1, 15, 8), "r": random(1, 15, 5)},
    ),
}


def commands_of(program):
    """Return (name, index of its first word) of each command."""
    code, at, commands = program.code, 0, []
    while at < len(code):
        commands.append((NAMES[int(code[at])], at))
        at += code[at + 1]
    return commands


def programs_of(name):
    """Return the native programs of a body's plan."""
    body, constants = BODIES[name]
    model = rnnfast.load(parse(f"g (float[m,k] x) => (y) {{ {body} }}", **constants))
    model(x=random(6, 8))
    programs = [run for run, *_ in model.planned.plans.kept[0].steps if isinstance(run, NativeProgram)]
    assert name in [command for program in programs for command, _ in commands_of(program)]
    return programs


def test_every_command_is_checked():
    """Each of them, "call" within loops and branches, has a row here and one in the verifier."""
    from rnnfast.native._programs import COMMANDS

    assert set(CHECKS) == set(COMMANDS) == {*BODIES, "call"}


@pytest.mark.parametrize("name", BODIES)
def test_programs_as_they_are_built_pass(name):
    for program in programs_of(name):
        verify(program)


@pytest.mark.parametrize("name", BODIES)
def test_places_outside_of_their_buffers_are_found(name):
    """Any offset into the arena, an input or an output that is moved far beyond its end, and any other buffer."""
    found = 0
    for program in programs_of(name):
        code, far = program.code, 1 << 40
        for i in range(2, len(code)):
            for change in (far, -far):
                corrupt = code.copy()
                corrupt[i] = code[i] + change
                try:
                    verify(program, corrupt)
                except CorruptProgram:
                    found += 1
                except Exception as e:
                    raise AssertionError(f"word {i}") from e
    assert found >= 2


# Words that a command has at these places, by its struct: where its first location's buffer and offset are.
PLACED = {"copy": 2, "reduce": 2, "rows": 2, "gather": 2, "order": 2, "integer": 2, "running": 2, "multiply": 2,
          "depthwise": 2, "pool": 2, "product": 3, "convolution": 3, "recurrent": 3, "loop": 2,
          "branch": 2}  # fmt: skip


@pytest.mark.parametrize("name", PLACED)
def test_places_far_away_and_unknown_buffers_are_found(name):
    """For the first location of each command of the kind."""
    for program in programs_of(name):
        code = program.code
        for command, at in commands_of(program):
            place = at + PLACED[name]
            if command == name and code[place] > 0:
                corrupt = code.copy()
                corrupt[place + 1] += 1 << 20
                with pytest.raises(CorruptProgram, match=name):
                    verify(program, corrupt)
                corrupt[place], corrupt[place + 1] = 60, code[place + 1]
                with pytest.raises(CorruptProgram, match="there is no buffer 60"):
                    verify(program, corrupt)


def test_one_element_beyond_an_output():
    (program,) = programs_of("elementwise")
    code = program.code
    place = 2 + 1 + 6 + 2  # behind the head, the axes, the shape and the two numbers
    assert code[place] == 3
    corrupt = code.copy()
    corrupt[place + 1] += 4
    with pytest.raises(CorruptProgram, match="bytes 4 to 196 are outside of buffer 3, which has 192"):
        verify(program, corrupt)
    corrupt[place + 1] = -4
    with pytest.raises(CorruptProgram, match="bytes -4 to"):
        verify(program, corrupt)
    corrupt = code.copy()
    corrupt[3] += 1  # the shape
    with pytest.raises(CorruptProgram, match="outside of buffer"):
        verify(program, corrupt)


def test_truncated_and_foreign_commands():
    (program,) = programs_of("elementwise")
    code = program.code
    for corrupt in (code[:-1], np.append(code, code[0]), np.insert(code, 0, 0)):
        with pytest.raises(CorruptProgram):
            verify(program, corrupt)
    corrupt = code.copy()
    corrupt[1] -= 7
    with pytest.raises(CorruptProgram):
        verify(program, corrupt)


def test_a_program_is_verified_when_it_is_built(monkeypatch):
    """If the environment asks for it."""
    from rnnfast.native import verify as module

    seen = []
    monkeypatch.setattr(module, "verify", seen.append)
    monkeypatch.delenv("RNNFAST_VERIFY", raising=False)
    programs_of("rows")
    assert not seen
    monkeypatch.setenv("RNNFAST_VERIFY", "1")
    assert seen == [] and programs_of("rows") == seen


def test_steps_of_layers_pass(monkeypatch):
    monkeypatch.setenv("RNNFAST_VERIFY", "1")
    for layer in (nn.LSTM(7, 5, 3, rng=0), nn.GRU(7, 5, rng=0), nn.LSTM(7, 6, proj_size=4, rng=0)):
        layer.stream().step(random(7))
