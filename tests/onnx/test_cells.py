"""Recurrences that files spell out: what is recognised gives what the file says, and what is none is left alone."""

import dataclasses
import functools
import itertools
import re

import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast.onnx.trace import PlannedGraph
from tests.graphs import onnxruntime, parse, random

I, H = 5, 7
ORDERS = {"iofc": (0, 1, 2, 3), "ifgo": (0, 3, 1, 2), "fiog": (1, 2, 0, 3)}


@dataclasses.dataclass
class Cell:
    """A step of a cell in ONNX's textual form, from the values x{t} and h{t}, c{t} to h{t+1}, c{t+1}."""

    name: str
    text: str  # with @ in place of the step, and ^ of the next
    weights: dict
    kind: str
    has_c: bool = False

    def step(self, t, following, prefix=""):
        """The nodes of a step; `prefix` begins the names of its values, and those of W and R are doubled then."""
        text = re.sub(r"\b(\w+[@^])", prefix + r"\1", self.text)
        text = re.sub(r"\b([WR])\b", r"\1\1", text) if prefix else text
        return text.replace("@", str(t)).replace("^", str(following))


def dense(seed, *shape, scale=0.4):
    return scale * random(seed, *shape)


def lstm_cells():
    """LSTMs as different writers put them down."""
    joint = {"W": dense(1, I, 4 * H), "R": dense(2, H, 4 * H), "b": dense(3, 4 * H), "b2": dense(4, 4 * H)}
    quarters = {"quarters": np.array([H] * 4)}
    tail = """i@ = Sigmoid (gi@)  f@ = Sigmoid (gf@)  g@ = Tanh (gg@)  o@ = Sigmoid (go@)
        k@ = Mul (f@, c@)  n@ = Mul (i@, g@)  c^ = Add (k@, n@)  a@ = Tanh (c^)  h^ = Mul (o@, a@)"""
    yield Cell("torch's LSTMCell", f"""p@ = Gemm <transB = 1> (h@, RT, b2)  q@ = Gemm <transB = 1> (x@, WT, b)
        s@ = Add (p@, q@)  gi@, gf@, gg@, go@ = Split <axis = 1> (s@, quarters)  {tail}""",
        {**joint, "WT": joint["W"].T.copy(), "RT": joint["R"].T.copy(), **quarters}, "LSTM", True)  # fmt: skip
    yield Cell("products of x and h in one", f"""u@ = Concat <axis = 1> (x@, h@)  m@ = MatMul (u@, WR)  s@ = Add (b, m@)
        go@, gf@, gi@, gg@ = Split <axis = -1> (s@, quarters)  {tail.replace("(o@, a@)", "(a@, o@)")}""",
        {"WR": dense(1, I + H, 4 * H), "b": dense(3, 4 * H), **quarters}, "LSTM", True)  # fmt: skip
    parts = {f"{w}{g}": dense(10 + i, n, H) for i, (w, g) in enumerate(itertools.product("WR", "ifgo"))
             for n in [I if w == "W" else H]}  # fmt: skip
    yield Cell("a product for each gate", " ".join(
        f"x{g}@ = MatMul (x@, W{g})  r{g}@ = MatMul (h@, R{g})  y{g}@ = Add (x{g}@, r{g}@)  g{g}@ = Add (y{g}@, b{g})"
        for g in "ifgo") + tail.replace("c^ = Add (k@, n@)", "c^ = Add (n@, k@)"),
        {**parts, **{f"b{g}": dense(30 + i, H) for i, g in enumerate("ifgo")}}, "LSTM", True)  # fmt: skip
    yield Cell("Keras, slices and hard sigmoid", f"""
        p@ = MatMul (x@, W)  q@ = MatMul (h@, R)  r@ = Add (p@, q@)  s@ = Add (r@, b)
        gi@ = Slice (s@, m0, m1, one)  gf@ = Slice (s@, m1, m2, one)  gg@ = Slice (s@, m2, m3, one)
        go@ = Slice (s@, m3, m4, one)  {tail.replace("Sigmoid", "HardSigmoid <alpha = 0.2, beta = 0.5>")}""",
        {**joint, "one": np.array([1]), **{f"m{k}": np.array([k * H]) for k in range(5)}}, "LSTM", True)  # fmt: skip
    clipped = " ".join(
        f"v{g}@ = Mul (fifth, g{g}@)  w{g}@ = Add (v{g}@, half)  {g}@ = Clip (w{g}@, low, high)" for g in "ifo"
    )
    yield Cell("hard sigmoid by Clip", f"""p@ = MatMul (x@, W)  q@ = MatMul (h@, R)  r@ = Add (p@, q@)  s@ = Add (r@, b)
        gi@, gf@, gg@, go@ = Split <axis = 1> (s@, quarters)  {clipped}  g@ = Relu (gg@)
        k@ = Mul (f@, c@)  n@ = Mul (i@, g@)  c^ = Add (k@, n@)  a@ = Tanh (c^)  h^ = Mul (o@, a@)""",
        {**joint, **quarters, "fifth": np.float32(0.2), "half": np.float32(0.5),
         "low": np.float32(0), "high": np.float32(1)}, "LSTM", True)  # fmt: skip
    sixths = " ".join(
        f"v{g}@ = Add (g{g}@, three)  w{g}@ = Clip (v{g}@, low, six)  {g}@ = Div (w{g}@, six)" for g in "ifo"
    )
    yield Cell("hard sigmoid of Keras 3, slices of all axes", f"""
        p@ = MatMul (x@, W)  q@ = MatMul (h@, R)  r@ = Add (p@, q@)  s@ = Add (r@, b)
        gi@ = Slice (s@, l0, u1, both)  gf@ = Slice (s@, l1, u2, both)  gg@ = Slice (s@, l2, u3, both)
        go@ = Slice (s@, l3, u4, both)  {sixths}  g@ = Tanh (gg@)
        k@ = Mul (f@, c@)  n@ = Mul (i@, g@)  c^ = Add (k@, n@)  a@ = Tanh (c^)  h^ = Mul (o@, a@)""",
        {**joint, "both": np.array([0, 1]), "three": np.float32(3), "six": np.float32(6), "low": np.float32(0),
         **{f"l{k}": np.array([0, k * H]) for k in range(4)},
         **{f"u{k}": np.array([2**31 - 1, k * H]) for k in range(1, 5)}}, "LSTM", True)  # fmt: skip
    late = tail.replace("o@ = Sigmoid (go@)", "")
    late = late.replace("h^ =", "po@ = Mul (c^, po)  go@ = Add (so@, po@)  o@ = Sigmoid (go@)  h^ =")
    yield Cell("peepholes", f"""p@ = MatMul (x@, W)  q@ = MatMul (h@, R)  r@ = Add (p@, q@)  s@ = Add (r@, b)
        si@, sf@, gg@, so@ = Split <axis = 1> (s@, quarters)
        pi@ = Mul (c@, pi)  gi@ = Add (si@, pi@)  pf@ = Mul (pf, c@)  gf@ = Add (pf@, sf@)
        {late}""",
        {**joint, **quarters, "pi": dense(50, H), "pf": dense(51, H), "po": dense(52, H)},
        "LSTM", True)  # fmt: skip


def other_cells():
    """GRUs and RNNs."""
    joint = {"W": dense(1, I, 3 * H), "R": dense(2, H, 3 * H), "b": dense(3, 3 * H), "b2": dense(4, 3 * H)}
    joint |= {"one": np.float32(1), "thirds": np.array([H] * 3)}
    head = """p@ = MatMul (x@, W)  p2@ = Add (p@, b)  q@ = MatMul (h@, R)  q2@ = Add (q@, b2)
        xr@, xz@, xn@ = Split <axis = 1> (p2@, thirds)  hr@, hz@, hn@ = Split <axis = 1> (q2@, thirds)
        sr@ = Add (xr@, hr@)  r@ = Sigmoid (sr@)  sz@ = Add (xz@, hz@)  z@ = Sigmoid (sz@)
        rn@ = Mul (r@, hn@)  sn@ = Add (xn@, rn@)  n@ = Tanh (sn@)"""
    mixtures = {
        "(1 - z) n + z h": "y@ = Sub (one, z@)  a@ = Mul (y@, n@)  d@ = Mul (z@, h@)  h^ = Add (a@, d@)",
        "n + z (h - n)": "y@ = Sub (h@, n@)  a@ = Mul (y@, z@)  h^ = Add (a@, n@)",
        "z n + (1 - z) h": "y@ = Sub (one, z@)  a@ = Mul (y@, h@)  d@ = Mul (z@, n@)  h^ = Add (d@, a@)",
        "h + z (n - h)": "y@ = Sub (n@, h@)  a@ = Mul (z@, y@)  h^ = Add (h@, a@)",
    }
    for name, mixture in mixtures.items():
        yield Cell(name, f"{head}  {mixture}", joint, "GRU")
    before = """p@ = MatMul (x@, W)  p2@ = Add (p@, b)  xr@, xz@, xn@ = Split <axis = 1> (p2@, thirds)
        q@ = MatMul (h@, R2)  hz@, hr@ = Split <axis = 1> (q@, halves)
        sr@ = Add (xr@, hr@)  r@ = Sigmoid (sr@)  sz@ = Add (xz@, hz@)  z@ = Sigmoid (sz@)
        rh@ = Mul (h@, r@)  hn@ = MatMul (rh@, Rn)  sn@ = Add (xn@, hn@)  n@ = Tanh (sn@)"""
    yield Cell("reset before the product", f"{before}  {mixtures['(1 - z) n + z h']}",
               {**joint, "R2": dense(6, H, 2 * H), "Rn": dense(7, H, H), "halves": np.array([H] * 2)},
               "GRU")  # fmt: skip
    for activation in ("Tanh", "Relu"):
        yield Cell(f"RNN, {activation}", f"""p@ = MatMul (x@, W)  q@ = MatMul (h@, R)  s@ = Add (q@, p@)
            sb@ = Add (s@, b)  h^ = {activation} (sb@)""",
            {"W": dense(1, I, H), "R": dense(2, H, H), "b": dense(3, H)}, "RNN")  # fmt: skip


CELLS = {cell.name: cell for cell in (*lstm_cells(), *other_cells())}


def unrolled(cell, T, states="given", taken="Gather", rows="b"):
    """A graph of T steps, one behind the other, whose outputs are stacked."""
    lines, constants = [], {"zero": np.array(0), "axis": np.array([0]), **cell.weights}
    if states == "zero":
        lines += ["full = Shape (x)  rows = Slice (full, axis, first)  size = Concat <axis = 0> (rows, width)"]
        lines += ["h0 = ConstantOfShape (size)  c0 = ConstantOfShape (size)"]
        constants |= {"width": np.array([H]), "first": np.array([1])}
    for t in range(T):
        constants[f"t{t}"] = np.array(t)
        if taken == "Gather":
            lines.append(f"x{t} = Gather <axis = 1> (x, t{t})")
        lines.append(cell.step(t, t + 1))
        lines.append(f"out{t} = Unsqueeze (h{t + 1}, at)")
    if taken == "Split":
        parts = ", ".join(f"part{t}" for t in range(T))
        lines.insert(0, f"{parts} = Split <axis = 1> (x, ones)")
        lines[1:1] = [f"x{t} = Squeeze (part{t}, at)" for t in range(T)]
        constants["ones"] = np.ones(T, np.int64)
    constants["at"] = np.array([1])
    lines.append(f"y = Concat <axis = 1> ({', '.join(f'out{t}' for t in range(T))})")
    inputs = "" if states == "zero" else f", float[{rows},{H}] h0" + (f", float[b,{H}] c0" if cell.has_c else "")
    outputs = f", float[b,{H}] h{T}" + (f", float[b,{H}] c{T}" if cell.has_c else "")
    text = f"g (float[b,{T},{I}] x{inputs}) => (float[b,{T},{H}] y{outputs}) {{ {'  '.join(lines)} }}"
    return parse(text, **constants)


def looped(cell, form):
    """A graph of a Loop or Scan whose body is a step."""
    c = cell.has_c
    state = f"float[b,{H}] h0" + (f", float[b,{H}] c0" if c else "")
    ends = "h, c" if c else "h"
    body = cell.step("_i", "_n")
    carried = f"float[b,{H}] h_i" + (f", float[b,{H}] c_i" if c else "")
    after = f"float[b,{H}] h_n" + (f", float[b,{H}] c_n" if c else "")
    constants, first = {"zero": np.array(0), **cell.weights}, "h0, c0" if c else "h0"
    head = f"g (float[t,b,{I}] x, {state}) => (float[t,b,{H}] y, float[b,{H}] h{f', float[b,{H}] c' if c else ''})"
    if form.startswith("Scan"):
        ways = "scan_input_directions = [1], scan_output_directions = [1]," if "both" in form else ""
        ways = "scan_input_directions = [1]," if form == "Scan backwards" else ways
        return parse(f"""{head} {{
            {ends}, y = Scan <num_scan_inputs = 1, {ways} body = s ({carried}, float[b,{I}] x_i)
            => ({after}, float[b,{H}] row) {{ {body}  row = Identity (h_n) }}> ({first}, x) }}""",
            **constants)  # fmt: skip
    return parse(f"""{head} {{ shape = Shape (x)  trips = Gather (shape, zero)  go = Constant <value = bool {{1}}> ()
        {ends}, y = Loop (trips, go, {first}) <
        body = s (int64 k, bool g, {carried}) => (bool g2, {after}, float[b,{H}] row) {{
        g2 = Identity (g)  x_i = Gather (x, k)  {body}  row = Identity (h_n) }}> }}""", **constants)  # fmt: skip


def feed_of(cell, rows, *shape, state_rows=None):
    feed = {"x": random(90, *shape), "h0": random(91, state_rows or rows, H)}
    return feed | ({"c0": random(92, rows, H)} if cell.has_c else {})


def operators_of(model, feed):
    """The operators of the nodes that a call runs, one by one."""
    operators = []

    def meter(step):
        operators.append(step.node.op_type)
        return step.run

    planned, args = model.prepare(feed)
    PlannedGraph(planned.graph, planned.names, "", meter=meter, specialises=True)(args)
    return operators


def same(data, feed):
    """The model gives what it gives without recognised cells and by the reference, or all of them refuse the call."""
    ours, plain = rnnfast.load(data), rnnfast.load(data, recognise_cells=False)
    calls = (functools.partial(plain, feed), functools.partial(plain.reference, feed), functools.partial(ours, feed))
    try:
        expected = calls[0]()
    except rnnfast.Error:
        for call in calls:
            with pytest.raises(rnnfast.Error):
                call()
        return ours
    for call in calls:
        got = call()
        for name, value in expected.items():
            assert np.shape(got[name]) == np.shape(value)
            np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=5e-6)
    return ours


def check(data, feed, kind, count=1):
    """The model has `count` recognised cells, and gives what it gives without them, and what onnxruntime gives."""
    ours, plain = rnnfast.load(data), rnnfast.load(data, recognise_cells=False)
    assert [text.rsplit(" ", 1)[1] for text in ours.recognised_cells] == [kind] * count
    assert plain.recognised_cells == ()
    expected = onnxruntime(data, feed)
    for _ in range(2):
        got, other, reference = ours(feed), plain(feed), ours.reference(feed)
        for name, value in expected.items():
            assert got[name].shape == value.shape
            for wanted in (value, other[name], reference[name]):
                np.testing.assert_allclose(got[name], wanted, rtol=2e-5, atol=5e-6)
    return ours


@pytest.mark.parametrize("states", ["given", "zero"])
@pytest.mark.parametrize("name", CELLS)
def test_unrolled(name, states):
    cell = CELLS[name]
    data = unrolled(cell, 6, states, "Split" if states == "zero" else "Gather")
    feed = feed_of(cell, 3, 3, 6, I)
    model = check(data, feed if states == "given" else {"x": feed["x"]}, cell.kind)
    assert len(model.folded.nodes) < 25


@pytest.mark.parametrize("form", ["Loop", "Scan", "Scan backwards", "Scan both backwards"])
@pytest.mark.parametrize("name", CELLS)
def test_loops(name, form):
    cell = CELLS[name]
    data = looped(cell, form)
    ours = check(data, feed_of(cell, 3, 8, 3, I), cell.kind)
    assert not {"Loop", "Scan"} & set(operators_of(ours, feed_of(cell, 3, 8, 3, I)))
    for frames, rows in ((1, 1), (2, 5), (31, 2)):
        feed = feed_of(cell, rows, frames, rows, I)
        for name, value in onnxruntime(data, feed).items():
            np.testing.assert_allclose(ours(feed)[name], value, rtol=2e-5, atol=5e-6)


def test_rows_that_are_repeated():
    """States of one row serve several, as elementwise operators repeat them."""
    cell = CELLS["torch's LSTMCell"]
    data = unrolled(cell, 4, rows="one")
    check(data, feed_of(cell, 3, 3, 4, I, state_rows=1), "LSTM")
    feed = feed_of(cell, 3, 1, 4, I)
    got, plain = rnnfast.load(data)(feed), rnnfast.load(data, recognise_cells=False)(feed)
    for name in plain:
        np.testing.assert_allclose(got[name], plain[name], rtol=2e-5, atol=5e-6)


def test_no_frames():
    """A loop without iterations leaves the states as they are."""
    cell = CELLS["torch's LSTMCell"]
    for form in ("Loop", "Scan"):
        feed = feed_of(cell, 2, 0, 2, I)
        got = rnnfast.load(looped(cell, form))(feed)
        np.testing.assert_array_equal(got["h"], feed["h0"])
        np.testing.assert_array_equal(got["c"], feed["c0"])


def test_fewer_iterations():
    """A loop over a part of the frames is no recurrence over all of them."""
    cell = CELLS["RNN, Tanh"]
    data = parse(f"""g (float[t,b,{I}] x, float[b,{H}] h0, int64 n) => (float[k,b,{H}] y, float[b,{H}] h) {{
        go = Constant <value = bool {{1}}> ()
        h, y = Loop (n, go, h0) <
        body = s (int64 k, bool g, float[b,{H}] h_i) => (bool g2, float[b,{H}] h_n, float[b,{H}] row) {{
        g2 = Identity (g)  x_i = Gather (x, k)  {cell.step("_i", "_n")}  row = Identity (h_n) }}> }}""",
        **cell.weights)  # fmt: skip
    model = rnnfast.load(data)
    for n in (1, 3, 6):
        feed = feed_of(cell, 2, 6, 2, I) | {"n": np.array(n)}
        expected = onnxruntime(data, feed)
        np.testing.assert_allclose(model(feed)["y"], expected["y"], rtol=2e-5, atol=5e-6)
    with pytest.raises(rnnfast.Error):
        model(feed_of(cell, 2, 6, 2, I) | {"n": np.array(7)})


def test_layers():
    """A layer above another one, with work on each step between them and behind."""
    cell, T = CELLS["n + z (h - n)"], 5
    lines = [f"x{t} = Gather <axis = 1> (x, t{t})  {cell.step(t, t + 1)}  l_x{t} = Relu (h{t + 1})" for t in range(T)]
    lines += [cell.step(t, t + 1, "l_") for t in range(T)]
    lines += [f"e{t} = Gemm (l_h{t + 1}, F, fb)  out{t} = Unsqueeze (e{t}, at)" for t in range(T)]
    text = f"""g (float[b,{T},{I}] x, float[b,{H}] h0, float[b,{H}] l_h0) => (float[b,{T},3] y) {{
        {"  ".join(lines)}  y = Concat <axis = 1> ({", ".join(f"out{t}" for t in range(T))}) }}"""
    constants = {"WW": dense(60, H, 3 * H), "RR": dense(61, H, 3 * H), "F": dense(70, H, 3), "fb": dense(71, 3)}
    constants |= {**cell.weights, "at": np.array([1])}
    data = parse(text, **constants, **{f"t{t}": np.array(t) for t in range(T)})
    feed = {"x": random(1, 2, T, I), "h0": random(2, 2, H), "l_h0": random(3, 2, H)}
    model = check(data, feed, "GRU", 2)
    assert sum(node.op_type in ("MatMul", "Gemm") for node in model.folded.nodes) == 1


def test_loops_above_loops():
    """A Scan over what a Scan gives is recognised too, with states whose number of rows the file leaves open."""
    cell = CELLS["RNN, Tanh"]
    body = cell.step("_i", "_n")
    upper = cell.step("_i", "_n", "l_").replace("WW", "W2").replace("RR", "R")
    data = parse(
        f"""g (float[t,b,{I}] x, float[a,{H}] h0, float[c,{H}] l_h0) => (float[t,b,{H}] y, float[b,{H}] h) {{
        h1, y1 = Scan <num_scan_inputs = 1, body = s (float[p,{H}] h_i, float[p,{I}] x_i)
            => (float[p,{H}] h_n, float[p,{H}] row) {{ {body}  row = Identity (h_n) }}> (h0, x)
        h, y = Scan <num_scan_inputs = 1, body = s2 (float[p,{H}] l_h_i, float[p,{H}] l_x_i)
            => (float[p,{H}] l_h_n, float[p,{H}] row2) {{ {upper}  row2 = Identity (l_h_n) }}> (l_h0, y1) }}""",
        **cell.weights,
        W2=dense(40, H, H),
    )
    check(data, {"x": random(1, 5, 2, I), "h0": random(2, 2, H), "l_h0": random(3, 2, H)}, "RNN", 2)


def test_names_like_added_ones():
    """A file whose names are like those of values that are added keeps its nodes."""
    cell = CELLS["RNN, Tanh"]
    feed = feed_of(cell, 3, 3, 4, I)
    for name in ("h4 (cell: W)", "h4 (cell: Y)"):
        model = onnx.load_from_string(unrolled(cell, 4))
        model.graph.input[0].name = name
        for node in model.graph.node:
            node.input[:] = [name if read == "x" else read for read in node.input]
        assert not same(model.SerializeToString(), {name: feed["x"], "h0": feed["h0"]}).recognised_cells


@pytest.mark.parametrize("join", ["Concat", "SequenceConstruct"])
@pytest.mark.parametrize("axis", [-5, -4, -3, -1, 0, 2, 3])
def test_joined_steps(join, axis):
    """What is done to each step is done at once if no step of it fails."""
    cell, T = CELLS["n + z (h - n)"], 4
    lines = [f"x{t} = Gather (x, t{t})  {cell.step(t, t + 1)}  e{t} = Gemm (h{t + 1}, F, fb)" for t in range(T)]
    parts = ", ".join(f"e{t}" for t in range(T))
    if join == "Concat":
        lines += [f"o{t} = Unsqueeze (e{t}, axes)" for t in range(T)]
        lines += [f"y = Concat <axis = {axis}> ({parts.replace('e', 'o')})"]
    else:
        lines += [f"list = SequenceConstruct ({parts})  y = ConcatFromSequence <axis = {axis}, new_axis = 1> (list)"]
    text = f"g (float[{T},b,{I}] x, float[b,{H}] h0) => (float[p,q,r] y) {{ {'  '.join(lines)} }}"
    constants = {**cell.weights, "axes": np.array([axis % 3]), **{f"t{t}": np.array(t) for t in range(T)}}
    for matrix, row in (((H, 3), 3), ((1, H, 3), 3), ((H + 1, 3), 3), ((H, 3), 4)):
        same(parse(text, F=dense(1, *matrix), fb=dense(2, row), **constants), feed_of(cell, 3, T, 3, I))


NOT_CELLS = {
    "another gate's activation": ("torch's LSTMCell", "o@ = Sigmoid (go@)", "o@ = Tanh (go@)"),
    "feedback of the output": ("torch's LSTMCell", "(x@, WT, b)", "(h@, WT2, b)"),
    "a state that is halved": ("torch's LSTMCell", "k@ = Mul (f@, c@)", "ch@ = Mul (c@, half)  k@ = Mul (f@, ch@)"),
    "z of another step": ("n + z (h - n)", "y@ = Sub (h@, n@)", "y@ = Sub (xz@, n@)"),
    "two minus z": ("(1 - z) n + z h", "Sub (one, z@)", "Sub (two, z@)"),
    "a product of the reset and x": ("n + z (h - n)", "rn@ = Mul (r@, hn@)", "rn@ = Mul (r@, xz@)"),
}


@pytest.mark.parametrize("form", ["unrolled", "Loop"])
@pytest.mark.parametrize("name", NOT_CELLS)
def test_what_is_no_cell(name, form):
    """A formula that differs in one place is no cell, and computed as the file says."""
    base, old, new = NOT_CELLS[name]
    cell = CELLS[base]
    assert old in cell.text
    weights = {**cell.weights, "two": np.float32(2), "half": np.float32(0.5), "WT2": dense(80, 4 * H, H)}
    cell = dataclasses.replace(cell, text=cell.text.replace(old, new), weights=weights)
    data = unrolled(cell, 4) if form == "unrolled" else looped(cell, form)
    feed = feed_of(cell, 2, 2, 4, I) if form == "unrolled" else feed_of(cell, 2, 4, 2, I)
    check(data, feed, cell.kind, 0)


def test_states_that_others_read():
    """A cell state inside the chain that something else reads stays, and so do the gates."""
    cell, T = CELLS["torch's LSTMCell"], 8
    lines = [f"x{t} = Gather <axis = 1> (x, t{t})  {cell.step(t, t + 1)}" for t in range(T)]
    text = f"""g (float[b,{T},{I}] x, float[b,{H}] h0, float[b,{H}] c0) => (float[b,{H}] y, float[b,{H}] z) {{
        {"  ".join(lines)}  y = Add (c4, h{T})  z = Mul (f6, h2) }}"""
    data = parse(text, **cell.weights, **{f"t{t}": np.array(t) for t in range(T)})
    check(data, feed_of(cell, 3, 3, T, I), "LSTM", 2)


@pytest.mark.parametrize("copy", ["", "cc = Identity (c4)"])
def test_states_that_branches_read(copy):
    """A cell state that a graph within reads, itself or a copy of it, is there for it."""
    cell, T = CELLS["torch's LSTMCell"], 5
    lines = [f"x{t} = Gather <axis = 1> (x, t{t})  {cell.step(t, t + 1)}" for t in range(T)]
    text = f"""g (float[b,{T},{I}] x, float[b,{H}] h0, float[b,{H}] c0, bool q) => (float[b,{H}] y, float[b,{H}] h5) {{
        {"  ".join(lines)}  {copy}
        y = If (q) <then_branch = a () => (float[b,{H}] u) {{ u = Neg ({"cc" if copy else "c4"}) }},
                    else_branch = e () => (float[b,{H}] v) {{ v = Abs (h2) }}> }}"""
    data = parse(text, **cell.weights, **{f"t{t}": np.array(t) for t in range(T)})
    for q in (True, False):
        check(data, feed_of(cell, 3, 3, T, I) | {"q": np.array(q)}, "LSTM")


def test_products_that_gates_share():
    """One peephole product for two gates leaves no room for another reader of the cell state."""
    cell, T = CELLS["peepholes"], 5
    text = cell.text.replace("pf@ = Mul (pf, c@)  gf@ = Add (pf@, sf@)", "gf@ = Add (pi@, sf@)")
    lines = [f"x{t} = Gather <axis = 1> (x, t{t})" for t in range(T)]
    lines += [dataclasses.replace(cell, text=text).step(t, t + 1) for t in range(T)]
    data = parse(
        f"""g (float[b,{T},{I}] x, float[b,{H}] h0, float[b,{H}] c0) => (float[b,{H}] y, float[b,{H}] h{T}) {{
        {"  ".join(lines)}  y = Neg (c3) }}""",
        **cell.weights,
        **{f"t{t}": np.array(t) for t in range(T)},
    )
    check(data, feed_of(cell, 3, 3, T, I), "LSTM")


def test_chains_that_wait_for_each_other():
    """Of two chains that take each other's first step at their third, one becomes a node."""
    cell = CELLS["RNN, Tanh"]
    lines = [f"x{t} = Identity (u{t})  l_x{t} = Identity (v{t})" for t in (0, 1)]
    lines += ["x2 = Identity (l_h1)  l_x2 = Identity (h1)"]
    lines += [cell.step(t, t + 1) + "  " + cell.step(t, t + 1, "l_") for t in range(3)]
    names = ("u0", "u1", "v0", "v1", "h0", "l_h0")
    data = parse(
        f"""g ({", ".join(f"float[2,{H}] {name}" for name in names)}) => (float[2,{H}] h3, float[2,{H}] l_h3) {{
        {"  ".join(lines)} }}""",
        **{**cell.weights, "W": dense(1, H, H), "WW": dense(3, H, H), "RR": dense(4, H, H)},
    )
    check(data, {name: random(i, 2, H) for i, name in enumerate(names)}, "RNN")


@pytest.mark.parametrize("rows", [(3, 3, 3), (1, 3, 3), (3, 1, 3), (1, 1, 3)])
def test_steps_of_other_rows(rows):
    """Inputs of steps whose numbers of rows are not known to be equal may differ: one row serves several."""
    cell = CELLS["RNN, Tanh"]
    lines = [f"x{t} = Add (X{t}, Y{t})  {cell.step(t, t + 1)}" for t in range(3)]
    inputs = ", ".join(f"float[r{t},{I}] X{t}, float[s{t},{I}] Y{t}" for t in range(3))
    data = parse(f"g ({inputs}, float[b,{H}] h0) => (float[b,{H}] h3, float[b,{H}] h1) {{ {'  '.join(lines)} }}",
                 **cell.weights)  # fmt: skip
    feed = {f"{key}{t}": random(10 * t, n, I) for t, n in enumerate(rows) for key in "XY"} | {"h0": random(9, 3, H)}
    assert not same(data, feed).recognised_cells


@pytest.mark.parametrize("frames", [(3, 3), (1, 3), (3, 1)])
def test_frames_of_a_sum(frames):
    """One frame that is added to several serves all of them."""
    lines = ["xa = Add (A, A2)  xb = Add (B, B2)  pa = MatMul (xa, W)  pb = MatMul (xb, W2)  sum = Add (pa, pb)"]
    lines += [f"g{t} = Gather (sum, t{t})  q{t} = MatMul (h{t}, R)  s{t} = Add (q{t}, g{t})  h{t + 1} = Tanh (s{t})"
              for t in range(3)]  # fmt: skip
    names = ("A", "A2", "B", "B2")
    data = parse(
        f"""g ({", ".join(f"float[{name}t,b,{I}] {name}" for name in names)}, float[b,{H}] h0) => (float[b,{H}] h3) {{
        {"  ".join(lines)} }}""",
        **{f"t{t}": np.array(t) for t in range(3)},
        W=dense(1, I, H),
        W2=dense(2, I, H),
        R=dense(3, H, H),
    )
    same(data, {name: random(i, frames[i // 2], 2, I) for i, name in enumerate(names)} | {"h0": random(9, 2, H)})


def test_weights_that_do_not_fit():
    """What is refused without recognition is refused with it: a matrix of more rows than there are columns."""
    cell = CELLS["products of x and h in one"]
    wrong = dataclasses.replace(cell, weights={**cell.weights, "WR": dense(1, I + H + 2, 4 * H)})
    same(unrolled(wrong, 4), feed_of(cell, 3, 3, 4, I))
    same(looped(wrong, "Scan"), feed_of(cell, 3, 4, 3, I))


LOOP = f"""g (float[t,b,{I}] x, float[b,{H}] h0) => (float[t,b,{H}] y, float[b,{H}] h) {{
    shape = Shape (x)  trips = Gather (shape, zero)  go = Constant <value = bool {{1}}> ()
    count = Cast <to = 6> (trips)
    h, last, y = Loop (trips, go, h0, zero) <body = s (int64 k, bool g, float[b,{H}] h_i, int64 j)
    => (bool g2, float[b,{H}] h_n, int64 j2, float[b,{H}] row) {{
    g2 = Identity (g)  j2 = Add (j, one)  x_i = Gather (x, j)  {CELLS["RNN, Tanh"].step("_i", "_n")}
    row = Identity (h_n) }}> }}"""
LOOPS = {
    "as it is": (),
    "a counter that gets an axis": (("(j, one)", "(j, ones)"),),
    "a condition of another type": (
        ("trips, go,", "trips, ,"),
        ("bool g2", "float g2"),
        ("Identity (g)", "Cast <to = 1> (g)"),
    ),
    "a condition of two elements": (("trips, go,", "trips, ,"), ("Identity (g)", "Expand (g, twos)")),
    "a count of another type": (("(trips, go,", "(count, go,"),),
    "a name of the body": (("g2 =", "x = Abs (other)  g2 ="),),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_that_differ(name):
    """A loop that fails is refused, though a cell is all that it computes; names of the body are its own."""
    text = LOOP
    for old, new in LOOPS[name]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    constants = {"zero": np.array(0), "one": np.array(1), "ones": np.array([1]), "twos": np.array([2])}
    cell = CELLS["RNN, Tanh"]
    data = parse(text, **constants, **cell.weights, other=random(7, 4, 3, I))
    same(data, feed_of(cell, 3, 4, 3, I))


SCAN = f"""g (float[t,b,{I}] x, float[b,{H}] h0, float[t2,3] u) => (float[p,q,r] y, float[b,{H}] h) {{
    h, y = Scan <num_scan_inputs = 2, @ body = s (float[b,{H}] h_i, float[b,{I}] x_i, float[3] u_i)
    => (float[b,{H}] h_n, float[b,{H}] row) {{ {CELLS["RNN, Tanh"].step("_i", "_n")}
    row = Identity (h_n) }}> (h0, x, u) }}"""


@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize("attribute", [
    "", "scan_output_axes = [-1],", "scan_output_axes = [3],", "scan_output_axes = [0, 0],",
    "scan_output_directions = [2],", "scan_input_axes = [3, 0],", "scan_input_axes = [0],",
    "scan_input_axes = [-3, -2],", "scan_input_directions = [2, 0],", "scan_input_directions = [1, 1, 1],",
])  # fmt: skip
def test_scans_that_differ(attribute, length):
    """A Scan with wrong attributes, or another input of another length, is refused."""
    cell = CELLS["RNN, Tanh"]
    same(parse(SCAN.replace("@", attribute), **cell.weights), feed_of(cell, 3, 4, 3, I) | {"u": random(1, length, 3)})


def test_products_before_the_loop():
    """Inputs that are multiplied before a Scan are multiplied by the layer, and held as long as that needs them."""
    cell = CELLS["RNN, Tanh"]
    text = f"""g (float[t,b,{I}] x, float[b,{H}] h0) => (float[t,b,{H}] y, float[b,{H}] h) {{
        v = Abs (x)  p1 = MatMul (v, W)  p = Add (p1, b)
        h, y = Scan <num_scan_inputs = 1, body = s (float[b,{H}] h_i, float[b,{H}] p_i)
        => (float[b,{H}] h_n, float[b,{H}] row) {{
        q_i = MatMul (h_i, R)  s_i = Add (q_i, p_i)  h_n = Tanh (s_i)  row = Identity (h_n) }}> (h0, p) }}"""
    data = parse(text, **cell.weights)
    for rows in (1, 3):
        feed = feed_of(cell, 3, 4, rows, I)
        model = check(data, feed, "RNN")
        assert ("Scan" in operators_of(model, feed)) == (rows == 1)


def test_rows_of_joined_values():
    """One row of the state does not serve several of the input where both are joined before the product."""
    cell = CELLS["products of x and h in one"]
    for rows in (1, 3):
        for state_rows in (1, 3):
            same(unrolled(cell, 4, rows="one"), feed_of(cell, rows, rows, 4, I, state_rows=state_rows))
            feed = feed_of(cell, 3, 3, 4, I, state_rows=3)
            same(unrolled(cell, 4, rows="one"), feed | {"c0": feed["c0"][:state_rows]})


@pytest.mark.parametrize("rows", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 3)])
def test_rows_of_two_inputs(rows):
    """One row of an input serves several of another one."""
    lines = [f"x{t} = Gather (x, t{t})  u{t} = Gather (u, t{t})  p{t} = MatMul (x{t}, W)  r{t} = MatMul (u{t}, W2)  "
             f"q{t} = MatMul (h{t}, R)  s{t} = Add (p{t}, q{t})  v{t} = Add (r{t}, s{t})  h{t + 1} = Tanh (v{t})"
             for t in range(4)]  # fmt: skip
    data = parse(
        f"""g (float[4,b,{I}] x, float[4,c,{I}] u, float[d,{H}] h0) => (float[b,{H}] h4, float[b,{H}] h1) {{
        {"  ".join(lines)} }}""",
        **{f"t{t}": np.array(t) for t in range(4)},
        W=dense(1, I, H),
        W2=dense(2, I, H),
        R=dense(3, H, H),
    )
    feed = {"x": random(1, 4, rows[0], I), "u": random(2, 4, rows[1], I), "h0": random(3, rows[2], H)}
    assert len(same(data, feed).recognised_cells) == 1


@pytest.mark.parametrize("form", ["unrolled", "Loop"])
def test_infinite_inputs(form):
    """A gate that does not read the input stays finite where that is infinite."""
    cell = CELLS["a product for each gate"]
    text = cell.text.replace("yf@ = Add (xf@, rf@)", "yf@ = Identity (rf@)")
    assert text != cell.text
    for other in (cell, dataclasses.replace(cell, text=text)):
        data = unrolled(other, 4) if form == "unrolled" else looped(other, form)
        feed = feed_of(cell, 2, 2, 4, I) if form == "unrolled" else feed_of(cell, 2, 4, 2, I)
        feed["x"][:, :, 2] = np.inf
        assert len(same(data, feed).recognised_cells) == (other is cell)
