"""Loading and planning take time and memory that grow with the number of nodes, and not with its square."""

import gc
import time
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast.errors import LimitError, ModelError
from rnnfast.onnx.compile import arena

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
X = (("x", FLOAT, [2]),)
CONDITION = (*X, ("c", BOOL, []))
SMALL, FACTOR = 500, 6
# Linear growth is FACTOR, that of a square FACTOR**2 = 36. Measured: 4.6 to 7.2, more while other programs run.
MOST = 2.5 * FACTOR
MAX_NODES = rnnfast.Limits().nodes


def bytes_of(nodes, inputs=X, outputs=("y",), constants=None, opset=17, functions=()):
    """The bytes of a model file."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions)).SerializeToString()


def links(n):
    """The names of the input and the output of each of n nodes in a chain from x to y."""
    return [(f"v{i}" if i else "x", f"v{i + 1}" if i < n - 1 else "y") for i in range(n)]


def chain_of(*op_types):
    def make(n):
        nodes = [helper.make_node(op_types[i % len(op_types)], [a], [b]) for i, (a, b) in enumerate(links(n))]
        return bytes_of(nodes, [("x", FLOAT, [3, 5])])

    return make


def backwards(n):
    return bytes_of([helper.make_node("Relu", [a], [b]) for a, b in links(n)][::-1])


def fan_out(n):
    names = [f"r{i}" for i in range(n - 1)]
    nodes = [helper.make_node("Softmax", ["x"], [name]) for name in names]
    return bytes_of([*nodes, helper.make_node("Concat", names, ["y"], axis=0)])


def many_outputs(n):
    names = [f"r{i}" for i in range(n)]
    return bytes_of([helper.make_node("Softmax", ["x"], [name]) for name in names], outputs=names)


def many_inputs(element_type):
    def make(n):
        nodes = [helper.make_node("Add", [a if i else "i", f"i{i}"], [b]) for i, (a, b) in enumerate(links(n))]
        return bytes_of(nodes, [("i", element_type, [2]), *((f"i{i}", element_type, [2]) for i in range(n))])

    return make


def initializers(n):
    nodes = [helper.make_node("Add", [a, f"w{i}"], [b]) for i, (a, b) in enumerate(links(n))]
    return bytes_of(nodes, constants={f"w{i}": np.ones(2, np.float32) for i in range(n)})


def constants(n):
    value = numpy_helper.from_array(np.ones(2, np.float32))
    nodes = [helper.make_node("Constant", [], [f"c{i}"], value=value) for i in range(n // 2)]
    return bytes_of(nodes + [helper.make_node("Add", [a, f"c{i}"], [b]) for i, (a, b) in enumerate(links(n // 2))])


def folded(n):
    nodes = [helper.make_node("Add", [a if i else "w", "w"], [b]) for i, (a, b) in enumerate(links(n))]
    return bytes_of([*nodes[:-1], helper.make_node("Add", ["x", "w"], ["y"])], constants={"w": np.ones(2, np.float32)})


def concatenations(n):
    return bytes_of([helper.make_node("Concat", [a, "x"], [b], axis=0) for a, b in links(n)], [("x", FLOAT, [0])])


def split(n):
    parts, results = ([f"{name}{i}" for i in range(n)] for name in "pr")
    nodes = [helper.make_node("Neg", [a], [b]) for a, b in zip(parts, results)]
    nodes = [
        helper.make_node("Split", ["x"], parts, axis=0),
        *nodes,
        helper.make_node("Concat", results, ["y"], axis=0),
    ]
    return bytes_of(nodes, [("x", FLOAT, [n])], opset=11)


def products(n):
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in links(n)]
    return bytes_of(nodes, [("x", FLOAT, [1, 4])], constants={"w": np.eye(4, dtype=np.float32)})


def branch(name, value="x"):
    output = helper.make_tensor_value_info(name, FLOAT, None)
    return helper.make_graph([helper.make_node("Identity", [value], [name])], "branch", [], [output])


def branches(n):
    """Ifs beside many names, a fourth of which they capture."""
    names = [f"y{i}" for i in range(n // 4)]
    nodes = [helper.make_node("Relu", ["x"], [f"n{i}"]) for i in range(len(names))]
    for i, name in enumerate(names):
        graphs = {"then_branch": branch(f"t{i}", f"n{i}"), "else_branch": branch(f"e{i}")}
        nodes.append(helper.make_node("If", ["c"], [name], **graphs))
    return bytes_of([*nodes, helper.make_node("Concat", names, ["y"], axis=0)], CONDITION)


def known_branches(n):
    nodes = [helper.make_node("Identity", ["x"], [f"n{i}"]) for i in range(n // 2)]
    for i, (a, b) in enumerate(links(n // 6)):
        graphs = {"then_branch": branch(f"t{i}", a), "else_branch": branch(f"e{i}")}
        nodes.append(helper.make_node("If", ["c"], [b], **graphs))
    return bytes_of(nodes, constants={"c": np.array(True)})


def deep_captures(n):
    """Graphs within graphs, the innermost of which captures many names."""
    names = [f"n{i}" for i in range(n // 2)]
    nodes = [helper.make_node("Relu", ["x"], [name]) for name in names]
    inner = helper.make_graph([helper.make_node("Sum", names, ["o"])], "inner", [], [onnx.ValueInfoProto(name="o")])
    for depth in range(10):
        node = helper.make_node("If", ["c"], [f"o{depth}"], then_branch=inner, else_branch=branch(f"e{depth}"))
        inner = helper.make_graph([node], "graph", [], [onnx.ValueInfoProto(name=f"o{depth}")])
    return bytes_of(
        [*nodes, helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=branch("e"))], CONDITION
    )


def loops(n):
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["k"]), helper.make_node("Relu", ["a"], ["o"])],
        "body",
        [helper.make_tensor_value_info(*v) for v in (("i", INT64, []), ("c", BOOL, []), ("a", FLOAT, None))],
        [helper.make_tensor_value_info(*v) for v in (("k", BOOL, []), ("o", FLOAT, None))],
    )
    nodes = [helper.make_node("Loop", ["m", "", a], [b], body=body) for a, b in links(n // 3)]
    return bytes_of(nodes, constants={"m": np.array(3)})


def function(name, nodes, attributes=()):
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["b"], nodes, opsets, attributes)


def calls(n):
    inner = function("f", [helper.make_node("Relu", ["a"], ["b"], name="N" * 10_000)])
    return bytes_of([helper.make_node("f", [a], [b], domain="own") for a, b in links(n // 2)], functions=[inner])


def calls_with_attributes(n):
    """Each call has another attribute, and the function a large tensor and a long name."""
    value = numpy_helper.from_array(np.ones(100_000, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("Size", ["c"], ["n"], name="N" * 100_000),
        helper.make_node("LeakyRelu", ["a"], ["b"]),
    ]
    nodes[2].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    called = [helper.make_node("f", [a], [b], domain="own", slope=i / n) for i, (a, b) in enumerate(links(n // 4))]
    return bytes_of(called, functions=[function("f", nodes, ["slope"])])


def attributes_of_calls(n):
    """Many nodes of a function take the tensor of its call."""
    nodes = [helper.make_node("Constant", [], [f"c{i}" if i else "b"]) for i in range(n)]
    for node in nodes:
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, ref_attr_name="k")
    value = numpy_helper.from_array(np.ones(100_000, np.float32))
    return bytes_of(
        [helper.make_node("f", ["x"], ["y"], domain="own", k=value)], functions=[function("f", nodes, ["k"])]
    )


def functions_in_functions(n):
    functions = [function("f0", [helper.make_node("Relu", ["a"], ["b"], name="N" * 1000)])]
    for depth in range(1, 5):
        pair = [helper.make_node(f"f{depth - 1}", [i], [o], domain="own") for i, o in (("a", "c"), ("c", "b"))]
        functions.append(function(f"f{depth}", pair))
    return bytes_of([helper.make_node("f4", [a], [b], domain="own") for a, b in links(n // 47)], functions=functions)


RECURRENT = {"W": np.full((2, 2), 0.1, np.float32), "R": np.full((2, 2), 0.2, np.float32)}


def steps(n, state, feedback=False, name="h"):
    """The nodes of n steps of an RNN cell from the value `state`, and the name of the last output."""
    nodes = []
    for i in range(n):
        new = f"{name}{i}"
        nodes += [
            helper.make_node("MatMul", [state if feedback else "x", "W"], [f"{new}p"]),
            helper.make_node("MatMul", [state, "R"], [f"{new}q"]),
            helper.make_node("Add", [f"{new}p", f"{new}q"], [f"{new}s"]),
            helper.make_node("Tanh", [f"{new}s"], [new]),
        ]
        state = new
    return nodes, state


ROW = [("x", FLOAT, [1, 2])]


def unrolled(n):
    nodes, last = steps(n // 4, "x")
    return bytes_of(nodes, ROW, (last,), RECURRENT)


def unrolled_with_feedback(n):
    nodes, last = steps(n // 4, "x", True)
    return bytes_of(nodes, ROW, (last,), RECURRENT)


def many_recurrences(n):
    made = [steps(5, "x", name=f"h{k}_") for k in range(n // 21)]
    nodes = [node for part, _ in made for node in part]
    return bytes_of([*nodes, helper.make_node("Sum", [last for _, last in made], ["y"])], ROW, ("y",), RECURRENT)


def recurrences_on_recurrences(n):
    nodes, last = [], "x"
    for k in range(n // 20):
        part, last = steps(5, last, name=f"h{k}_")
        nodes += part
    return bytes_of(nodes, ROW, (last,), RECURRENT)


def loops_that_are_recurrences(n):
    """Scans next to each other, as a loop over many parts of a network."""
    step = [
        helper.make_node("MatMul", ["xt", "W"], ["p"]),
        helper.make_node("MatMul", ["h", "R"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["s"]),
        helper.make_node("Tanh", ["s"], ["h2"]),
        helper.make_node("Identity", ["h2"], ["row"]),
    ]
    inputs = [helper.make_tensor_value_info(name, FLOAT, [1, 2]) for name in ("h", "xt")]
    outputs = [helper.make_tensor_value_info(name, FLOAT, [1, 2]) for name in ("h2", "row")]
    body = helper.make_graph(step, "body", inputs, outputs)
    scan = helper.make_node("Scan", ["h0", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    names = [f"last{k}" for k in range(n // 6)]
    nodes = []
    for name in names:
        node = onnx.NodeProto()
        node.CopyFrom(scan)
        node.output[:] = [name, ""]
        nodes.append(node)
    constants = {**RECURRENT, "h0": np.zeros((1, 2), np.float32)}
    return bytes_of([*nodes, helper.make_node("Sum", names, ["y"])], [("x", FLOAT, [3, 1, 2])], ("y",), constants)


def copies_of_a_gate(n):
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in links(n - 20)]
    part, last = steps(5, "y")
    return bytes_of([*nodes, *part], ROW, (last,), RECURRENT)


def sums_of_a_gate(n):
    """Each sum adds a value to itself: written out there would be 2**n terms."""
    nodes = [helper.make_node("Add", [a, a], [b]) for a, b in links(n - 4)]
    nodes += [helper.make_node("Tanh", ["y"], [f"t{i}"]) for i in range(3)]
    return bytes_of([*nodes, helper.make_node("Sum", ["t0", "t1", "t2"], ["z"])], ROW, ("z",))


def cuts_of_a_gate(n):
    whole = {"zero": np.array([0]), "all": np.array([9]), "last": np.array([-1])}
    nodes = [helper.make_node("Slice", [a, "zero", "all", "last"], [b]) for a, b in links(n - 4)]
    nodes += [helper.make_node("Tanh", ["y"], [f"t{i}"]) for i in range(3)]
    return bytes_of([*nodes, helper.make_node("Sum", ["t0", "t1", "t2"], ["z"])], ROW, ("z",), whole)


def counters(n):
    """A loop whose condition comes at the end of sums of its counter with itself."""
    one, names = np.array(1), links(n - 2)
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", [a, a], [b]) for a, b in names]
    nodes += [helper.make_node("Less", ["y", "one"], ["on2"])]
    states = [value("i", INT64, []), value("on", BOOL, []), value("x", INT64, [])]
    body = helper.make_graph(nodes, "b", states, [value("on2", BOOL, []), value("y", INT64, [])])
    node = helper.make_node("Loop", ["one", "", "one"], ["z"], body=body)
    return bytes_of([node, helper.make_node("Cast", ["z"], ["r"], to=FLOAT)], X, ("r",), {"one": one})


def lists(n):
    """Loops that gather lists, behind each other."""
    value, nodes = helper.make_tensor_value_info, [helper.make_node("SequenceEmpty", [], ["none"])]
    member = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    for a, b in links(n // 4):
        inside = [
            helper.make_node("Neg", [a], [f"{b}n"]),
            helper.make_node("SequenceInsert", [f"{b}l", f"{b}n"], [f"{b}m"]),
        ]
        inside.append(helper.make_node("Identity", [f"{b}c"], [f"{b}d"]))
        states = [value(f"{b}i", INT64, []), value(f"{b}c", BOOL, []), helper.make_value_info(f"{b}l", member)]
        outputs = [value(f"{b}d", BOOL, []), helper.make_value_info(f"{b}m", member)]
        body = helper.make_graph(inside, "b", states, outputs)
        nodes.append(helper.make_node("Loop", ["one", "", "none"], [f"{b}r"], body=body))
        nodes.append(helper.make_node("ConcatFromSequence", [f"{b}r"], [f"{b}s"], axis=0, new_axis=1))
        nodes.append(helper.make_node("Squeeze", [f"{b}s", "zero"], [b]))
    return bytes_of(nodes, X, ("y",), {"one": np.array(1), "zero": np.array([0])})


KINDS = {
    "chain": chain_of("Relu"),
    "chain of softmax": chain_of("Softmax"),
    "native and not": chain_of("Softmax", "Hardmax"),
    "not native": chain_of("Hardmax"),
    "int inputs": many_inputs(INT64),
    "inputs": many_inputs(FLOAT),
} | {
    make.__name__: make
    for make in (
        backwards,
        fan_out,
        many_outputs,
        initializers,
        constants,
        folded,
        concatenations,
        split,
        products,
        branches,
        known_branches,
        deep_captures,
        loops,
        calls,
        calls_with_attributes,
        attributes_of_calls,
        functions_in_functions,
        unrolled,
        unrolled_with_feedback,
        many_recurrences,
        recurrences_on_recurrences,
        loops_that_are_recurrences,
        copies_of_a_gate,
        sums_of_a_gate,
        cuts_of_a_gate,
        counters,
        lists,
    )
}


def load_and_run(data):
    model = rnnfast.load(data)
    required = set(model.required_inputs)
    return model({v.name: np.ones(v.type.shape, v.type.dtype) for v in model.inputs if v.name in required})


def seconds(data):
    start = time.process_time()
    load_and_run(data)
    return time.process_time() - start


def peak(data):
    tracemalloc.start()
    try:
        load_and_run(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_time_and_memory_grow_with_the_nodes(kind):
    small, large = KINDS[kind](SMALL), KINDS[kind](FACTOR * SMALL)
    load_and_run(small)  # what is imported and cached once
    gc.collect()
    bytes_small = peak(small)
    assert peak(large) < MOST * bytes_small
    for _ in range(3):  # another program may take the processor
        if seconds(large) < MOST * seconds(small):
            return
    raise AssertionError(f"{kind}: {FACTOR} times as many nodes take more than {MOST} times as long")


def test_the_largest_number_of_nodes():
    y = load_and_run(chain_of("Relu")(MAX_NODES))
    np.testing.assert_array_equal(y.y, np.ones((3, 5), np.float32))
    with pytest.raises(LimitError, match="limits.nodes = 100,000"):
        rnnfast.load(chain_of("Relu")(MAX_NODES + 1))


@pytest.mark.parametrize("extra", [0, 1])
def test_nodes_of_called_functions_count(extra):
    """f16 has 2**16 nodes in the end, and 2**16 - 1 calls."""
    functions = [function("f0", [helper.make_node("Relu", ["a"], ["b"])])]
    for depth in range(1, 16 + extra):
        pair = [helper.make_node(f"f{depth - 1}", [i], [o], domain="own") for i, o in (("a", "c"), ("c", "b"))]
        functions.append(function(f"f{depth}", pair))
    data = bytes_of([helper.make_node(f"f{15 + extra}", ["x"], ["y"], domain="own")], functions=functions)
    if extra:
        with pytest.raises(LimitError, match="nodes"):
            rnnfast.load(data)
    else:
        rnnfast.load(data)


def test_depth_counts_in_shared_bodies():
    """The body of f was read where there was room; deeper in the graph it is too deep."""
    inner = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", [], [onnx.ValueInfoProto(name="b")])
    for depth in range(12):
        node = helper.make_node("If", ["c"], [f"b{depth}"], then_branch=inner, else_branch=inner)
        node.attribute[1].g.CopyFrom(branch(f"e{depth}", "a"))
        inner = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name=f"b{depth}")])
    yes = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    f = function("f", [yes, *inner.node, helper.make_node("Identity", ["b11"], ["b"])])
    deep = [helper.make_node("f", ["x"], ["d"], domain="own")]
    for depth in range(12):
        graph = helper.make_graph(deep, "g", [], [onnx.ValueInfoProto(name=deep[-1].output[0])])
        node = helper.make_node("If", ["c"], [f"d{depth}"], then_branch=graph, else_branch=branch(f"q{depth}"))
        deep = [node]
    shallow = helper.make_node("f", ["x"], ["y"], domain="own")
    rnnfast.load(bytes_of([shallow], CONDITION, functions=[f]))
    with pytest.raises(LimitError, match="nested deeper"):
        rnnfast.load(bytes_of([shallow, *deep], CONDITION, functions=[f]))


def test_shared_bodies_differ_by_attributes():
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    node.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    inner, outer = function("f", [node], ["slope"]), helper.make_node("f", ["a"], ["b"], domain="own")
    outer.attribute.add(name="slope", type=onnx.AttributeProto.FLOAT, ref_attr_name="s")
    functions = [inner, function("g", [outer], ["s"])]
    nodes = [helper.make_node("f", ["x"], [f"a{i}"], domain="own", slope=s) for i, s in enumerate((0.5, 0.25, 0.5))]
    nodes += [helper.make_node("g", ["x"], [f"b{i}"], domain="own", s=s) for i, s in enumerate((0.75, 0.125, 0.75))]
    names = [node.output[0] for node in nodes]
    outputs = rnnfast.load(bytes_of(nodes, outputs=names, functions=functions))(x=np.float32([-1, 1]))
    assert [float(-outputs[name][0]) for name in names] == [0.5, 0.25, 0.5, 0.75, 0.125, 0.75]


def test_calls_do_not_share_nodes():
    f = function("f", [helper.make_node("Relu", ["a"], ["b"])])
    nodes = [helper.make_node("f", [a], [b], domain="own") for a, b in links(3)]
    graph = rnnfast.load(bytes_of(nodes, functions=[f])).graph
    assert len({id(node.attributes["body"].nodes[0]) for node in graph.nodes}) == 3


def test_functions_that_call_each_other_in_a_circle():
    functions = [function(a, [helper.make_node(b, ["a"], ["b"], domain="own")]) for a, b in ("fg", "gh", "hf")]
    nodes = [helper.make_node("h", ["x"], ["y"], domain="own"), helper.make_node("g", ["x"], ["z"], domain="own")]
    with pytest.raises(ModelError, match="calls itself"):
        rnnfast.load(bytes_of(nodes, functions=functions))


def nested_loops(depth, op_type):
    """Loops within loops whose innermost body does not have the type that it declares."""
    nodes = [helper.make_node(op_type, ["a0"], ["b0"])]
    for d in range(1, depth + 1):
        inputs = ((f"i{d}", INT64, []), (f"c{d}", BOOL, []), (f"a{d - 1}", FLOAT, None))
        body = helper.make_graph(
            [helper.make_node("Identity", [f"c{d}"], [f"k{d}"]), *nodes],
            "body",
            [helper.make_tensor_value_info(*v) for v in inputs],
            [helper.make_tensor_value_info(*v) for v in ((f"k{d}", BOOL, []), (f"b{d - 1}", FLOAT, None))],
        )
        nodes = [helper.make_node("Loop", ["m", "", f"a{d}"], [f"b{d}"], body=body)]
    nodes[0].input[2], nodes[0].output[0] = "x", "y"
    return bytes_of(nodes, (*X, ("m", INT64, [])))


@pytest.mark.parametrize("op_type", ["NonZero", "ArgMax", "Size", "Shape"])
def test_errors_in_nested_loops(op_type):
    """Each level tries once, not twice, or the attempts would double with every level."""
    model = rnnfast.load(nested_loops(20, op_type))
    start = time.process_time()
    with pytest.raises(ModelError, match="declared"):
        model(x=np.ones(2, np.float32), m=1)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("op_type", ["Relu", "Hardmax", "Softmax", "Elu", "Exp"])
def test_nested_loops(op_type):
    model = rnnfast.load(nested_loops(20, op_type))
    start = time.process_time()
    model(x=np.ones(2, np.float32), m=1)
    assert time.process_time() - start < 10


class _Allocation:
    def __init__(self, nbytes, first, last):
        self.array, self.first, self.last, self.index = np.empty(nbytes, np.uint8), first, last, None


@pytest.mark.parametrize("place", [arena._place_by_size, arena._place_by_time])
@pytest.mark.parametrize("longest", [1, 5, 300])
def test_no_two_allocations_in_use_overlap(place, longest):
    rng = np.random.default_rng(longest)
    allocations = []
    for _ in range(400):
        first = int(rng.integers(300))
        nbytes = int(rng.choice([0, 1, 64, 100, 5000]))
        allocations.append(_Allocation(nbytes, first, min(first + int(rng.integers(longest + 1)), 299)))
    placed = place(allocations)
    assert {id(a) for a, *_ in placed} == {id(a) for a in allocations}
    for i, (a, start, end) in enumerate(placed):
        assert start % 64 == 0 and end - start >= a.array.nbytes + arena.SLACK
        for b, other_start, other_end in placed[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert end <= other_start or other_end <= start
    size, live = max(end for *_, end in placed), arena.place(allocations)[1]
    assert size <= 1.5 * live
