"""Random graphs, made node by node: each node is computed at once, so that the next one can use its result."""

import functools

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from rnnfast.errors import Error, with_location
from rnnfast.onnx import binding, ops
from tests.fuzz import operators

NEWEST = min(defs.onnx_opset_version(), 28)
FLOAT32 = np.dtype(np.float32)
# The element types of values: float32 is what the native kernels are for.
DTYPES = [np.dtype(t) for t in ("f4", "i8", "i4", "?", "f8", "u1", "i1", "f2", "u2", "i2", "u4", "u8")]
DTYPE_ODDS = np.array([60, 12, 5, 6, 3, 4, 4, 2, 1, 1, 1, 1]) / 100
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 64, 65]
MOST_ELEMENTS = 20_000
CONTROL = ("If", "Loop", "Scan")
# Random numbers, other ones in each call, cannot be compared; SequenceMap would need a body of its own.
LEFT_OUT = (
    "SequenceMap",
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
# Operators that native kernels compute in ways of their own are chosen so many times as often as the others.
FAVOURED = (
    "Conv ConvTranspose MatMul Gemm LSTM GRU RNN Add Mul Sub Div Where Softmax LayerNormalization ReduceMean ReduceSum "
    "ReduceMax Transpose Reshape Slice Concat Split Gather Pad MaxPool AveragePool Cast SequenceConstruct"
).split()
FAVOUR = 4


@functools.cache
def operator_names():
    """Return the names of the operators of ONNX's own domain that rnnfast has."""
    names = sorted(name for domain, name in ops.table() if not domain and name not in CONTROL + LEFT_OUT)
    return names + (FAVOUR - 1) * FAVOURED


class GraphMaker:
    """A graph under construction.

    Attributes:
        rng: The generator of all choices.
        opset: The opset of ONNX's own domain.
        values: Arrays, lists and None by name: the results of a run on `feed`.
        feed: The graph's inputs by name.
        constants: The initializers by name.
    """

    def __init__(self, rng, opset, around=None):
        self.rng, self.opset, self.around = rng, opset, around
        self.values, self.feed, self.constants, self.nodes = dict(around.values) if around else {}, {}, {}, []
        self.sizes = around.sizes if around else list(rng.choice(SIZES, 3))
        self.hostile = around.hostile if around else rng.random() < 0.3

    # ------------------------------------------------------------------------------------------ choices
    def chance(self, probability):
        return self.rng.random() < probability

    def pick(self, choices):
        return choices[int(self.rng.integers(len(choices)))]

    def size(self):
        """A length of an axis, mostly one of the graph's few sizes, so that shapes often fit."""
        if self.chance(0.02):
            return 0
        return int(self.pick(self.sizes) if self.chance(0.7) else self.pick(SIZES))

    def shape(self, rank=None, most=MOST_ELEMENTS):
        """A shape of at most so many elements."""
        rank = int(self.rng.choice(5, p=[0.05, 0.15, 0.35, 0.3, 0.15])) if rank is None else rank
        sizes = [self.size() for _ in range(rank)]
        while np.prod(sizes, dtype=float) > most:
            sizes[int(np.argmax(sizes))] = 2
        return tuple(sizes)

    def array(self, dtype, shape):
        """Random values: mostly moderate, sometimes of any magnitude, rarely with NaN and infinity."""
        dtype, rng = np.dtype(dtype), self.rng
        if dtype.kind == "b":
            return rng.random(shape) < 0.5
        if dtype.kind in "iu":
            low, high = (-3 if dtype.kind == "i" else 0), 6
            if self.chance(0.1):
                low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
            return rng.integers(low, high, shape, dtype, endpoint=True)
        values = rng.standard_normal(shape)
        if self.chance(0.1):
            values = values * 10.0 ** rng.uniform(-6, 6, shape)
        if self.chance(0.04) and values.size:
            flat = values.reshape(-1)
            flat[rng.integers(flat.size, size=1 + flat.size // 8)] = self.pick(
                [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40]
            )
        with np.errstate(all="ignore"):
            return np.asarray(values, dtype)

    # ------------------------------------------------------------------------------------------- values
    def name(self, prefix):
        root = self
        while root.around is not None:
            root = root.around
        root.count = getattr(root, "count", 0) + 1
        return f"{prefix}{root.count}"

    def constant(self, array):
        """Add an initializer, or an input in one case of five, and return its name."""
        array = np.asarray(array)
        if self.around is None and self.chance(0.2):
            return self.input(array)
        name = self.name("c")
        self.constants[name] = self.values[name] = array
        return name

    def input(self, array):
        """Add an input of the graph, whose value in the feed is this array, and return its name."""
        if self.around is not None:
            return self.constant(array)
        name = self.name("x")
        self.feed[name] = self.values[name] = np.asarray(array)
        return name

    def new(self, dtype=FLOAT32, shape=None):
        """Return the name of a new random value."""
        array = self.array(dtype, self.shape() if shape is None else shape)
        return self.constant(array) if self.chance(0.35) else self.input(array)

    def value(self, dtypes=(FLOAT32,), rank=None, test=None):
        """Return the name of an existing value of one of these dtypes (and of this rank), or of a new one."""
        ranks = (rank,) if isinstance(rank, int) else rank
        found = [
            name
            for name, value in self.values.items()
            if isinstance(value, np.ndarray)
            and value.dtype in dtypes
            and value.size <= MOST_ELEMENTS
            and (ranks is None or value.ndim in ranks)
            and (test is None or test(value))
        ]
        if found and self.chance(0.75):
            return found[-1] if self.chance(0.6) else self.pick(found)
        odds = np.array([DTYPE_ODDS[DTYPES.index(t)] if t in DTYPES else 0.01 for t in dtypes])
        dtype = dtypes[int(self.rng.choice(len(dtypes), p=odds / odds.sum()))]
        name = self.new(dtype, None if ranks is None else self.shape(self.pick(ranks)))
        if test is not None and not test(self.values[name]):
            raise ValueError("the sizes that came up do not fit")
        return name

    def like(self, name):
        """Return the name of a value that broadcasts with this one."""
        array = self.values[name]
        found = [
            n for n, v in self.values.items() if isinstance(v, np.ndarray) and v.dtype == array.dtype and n != name
        ]
        if found and self.chance(0.3):
            return self.pick(found)
        shape = list(array.shape[int(self.rng.integers(array.ndim + 1)) if self.chance(0.4) else 0 :])
        return self.new(array.dtype, tuple(1 if self.chance(0.25) else n for n in shape))

    # -------------------------------------------------------------------------------------------- nodes
    def node(self, op_type, inputs, attributes, n_outputs=1, keep_refused=False):
        """Add a node if rnnfast's operator function computes it now; return whether it was added."""
        outputs = [self.name("v") for _ in range(n_outputs)]
        proto = helper.make_node(op_type, inputs, outputs)
        for key, value in attributes.items():
            if value is not None:
                proto.attribute.append(
                    value if isinstance(value, onnx.AttributeProto) else helper.make_attribute(key, value)
                )
        try:
            results = self.compute(proto)
        except Error:
            if not keep_refused:
                return False
            results = ()
        while proto.input and not proto.input[-1]:
            proto.input.pop()
        self.nodes.append(proto)
        for name, value in zip(outputs, results):
            if isinstance(value, np.ndarray) and value.size > 50 * MOST_ELEMENTS:
                self.nodes.pop()
                return False
            self.values[name] = value
        return True

    def compute(self, proto):
        """The results of a node on the values of its inputs."""
        function = binding.find("", proto.op_type, self.opset, "fuzz")
        binding.check_inputs(function, proto.input, "fuzz")
        attributes = {a.name: a for a in proto.attribute}
        bound = binding.bind(function, attributes, len(proto.output), _Tensors(), "fuzz")
        try:
            with np.errstate(all="ignore"):
                results = function(*[self.values[name] if name else None for name in proto.input], **bound)
        except Exception as e:
            raise with_location(e, "fuzz") from e
        return results if isinstance(results, tuple) else (results,)

    def add_random_node(self):
        """Try to add a node of a random operator; hostile graphs keep some that are refused."""
        if self.chance(0.06) and self.depth() < 2:
            return self.add_control()
        op_type = self.pick(operator_names())
        if operators.schema(op_type, self.opset) is None:
            return False
        recipe = operators.RECIPES.get(op_type, operators.by_schema)
        try:
            made = recipe(self, op_type)
        except (ValueError, IndexError):  # The sizes that came up leave no choice, such as an index into nothing.
            made = None
        if made is None:
            return False
        inputs, attributes, *rest = made
        if self.hostile and self.chance(0.1):
            operators.spoil(self, op_type, inputs, attributes)
        return self.node(op_type, inputs, attributes, *rest, keep_refused=self.hostile and self.chance(0.1))

    def depth(self):
        return 0 if self.around is None else 1 + self.around.depth()

    # ------------------------------------------------------------------------------------- control flow
    def body(self, inputs, count):
        """A graph inside this one that takes `inputs` (name, array) and computes `count` outputs."""
        inner = GraphMaker(self.rng, self.opset, self)
        inner.values.update(inputs)
        for _ in range(int(self.rng.integers(1, 5))):
            inner.add_random_node()
        made = [name for node in inner.nodes for name in node.output if isinstance(inner.values.get(name), np.ndarray)]
        while len(made) < count:
            source = inner.value()
            if not inner.node("Identity", [source], {}):
                return None
            made.append(inner.nodes[-1].output[0])
        return inner, made[-count:]

    def add_control(self):
        """Try to add an If, Loop or Scan whose bodies are random graphs."""
        kind = self.pick(CONTROL)
        try:
            made = getattr(self, f"make_{kind.lower()}")()
        except (Error, ValueError):  # A body is refused, or no sizes fit.
            return False
        if made is None:
            return False
        proto, results = made
        self.nodes.append(proto)
        self.values.update(zip(proto.output, results))
        return True

    def make_if(self):
        branches = [self.body({}, 1) for _ in range(2)]
        if None in branches:
            return None
        condition = self.constant(np.array(self.chance(0.5)))
        (then, of_then), (other, of_other) = branches
        proto = helper.make_node(
            "If",
            [condition],
            [self.name("v")],
            then_branch=then.graph(of_then, [], typed=False),
            else_branch=other.graph(of_other, [], typed=False),
        )
        chosen = (then, of_then) if self.values[condition] else (other, of_other)
        return proto, [chosen[0].values[chosen[1][0]]]

    def make_loop(self):
        """A loop with one carried value and one that is stacked; one of three ends by its own condition."""
        trips, carried = int(self.rng.integers(0, 4)), self.value()
        i, condition, state = self.name("i"), self.name("k"), self.name("s")
        made = self.body({i: np.array(0), condition: np.array(True), state: self.values[carried]}, 1)
        if made is None:
            return None
        inner, (result,) = made
        if not inner.node("Add", [state, result], {}):
            return None
        after = inner.nodes[-1].output[0]
        names, ran = [self.constant(np.array(trips)), "", carried], trips
        if self.opset >= 9 and self.chance(0.3):
            last = int(self.rng.integers(0, 4))
            made, ran = inner.node("Less", [i, inner.constant(np.array(last))], {}), min(trips, last + 1)
            if self.chance(0.5):
                names[0], ran = "", last + 1
            if self.chance(0.5):
                names[1] = self.constant(np.array(self.chance(0.8)))
                ran = ran if self.values[names[1]] else 0
        else:
            made = inner.node("Identity", [condition], {})
        if inner.values[after].shape != self.values[carried].shape or not made:
            return None
        outputs = [inner.nodes[-1].output[0], after, result]
        graph = inner.graph(
            outputs, [(i, np.array(0)), (condition, np.array(True)), (state, self.values[carried])], typed=False
        )
        proto = helper.make_node("Loop", names, [self.name("v"), self.name("v")], body=graph)
        row = inner.values[result]
        return proto, [self.values[carried], np.zeros((ran, *row.shape), row.dtype)]

    def make_scan(self):
        """A scan of one or two values along any axis, with a state in one case of two."""
        scanned = self.value(rank=(2, 3, 4), test=lambda v: len(v) > 0)
        if self.opset < 9:
            return None
        array = self.values[scanned]
        axis = int(self.rng.integers(array.ndim)) if self.chance(0.3) else 0
        count = array.shape[axis]
        scanned, axes = [scanned], [axis]
        rows = [(self.name("r"), np.take(array, 0, axis))] if count else []
        if rows and self.chance(0.3):
            scanned.append(self.new(FLOAT32, (count, self.size())))
            axes.append(0)
            rows.append((self.name("r"), self.values[scanned[-1]][0]))
        states = [self.value()] if rows and self.chance(0.5) else []
        taken = [(self.name("s"), self.values[name]) for name in states] + rows
        made = self.body(dict(taken), 1) if rows else None
        if made is None:
            return None
        inner, (result,) = made
        outputs = [result]
        if states:
            if not inner.node("Add", [taken[0][0], result], {}):
                return None
            outputs.insert(0, inner.nodes[-1].output[0])
            if inner.values[outputs[0]].shape != self.values[states[0]].shape:
                return None
        graph = inner.graph(outputs, taken, typed=False)
        row = inner.values[result]
        attributes, to = {"num_scan_inputs": len(scanned)}, 0
        if any(axes):
            attributes["scan_input_axes"] = axes
        if self.chance(0.3):
            attributes["scan_input_directions"] = [int(self.chance(0.7)) for _ in scanned]
        if self.chance(0.2):
            attributes["scan_output_directions"] = [1]
        if self.chance(0.2):
            to = int(self.rng.integers(row.ndim + 1))
            attributes["scan_output_axes"] = [to]
        proto = helper.make_node("Scan", states + scanned, [self.name("v") for _ in outputs], body=graph, **attributes)
        shape = [*row.shape[:to], count, *row.shape[to:]]
        return proto, [self.values[name] for name in states] + [np.zeros(shape, row.dtype)]

    # ------------------------------------------------------------------------------------------ protos
    def graph(self, outputs, inputs, typed=True):
        """The GraphProto of the nodes so far."""
        return helper.make_graph(
            self.nodes,
            "fuzz",
            [_value_info(name, array, self, typed) for name, array in inputs],
            [_value_info(name, self.values.get(name), None, typed) for name in outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in self.constants.items()],
        )

    def model(self):
        """The ModelProto of the whole graph; its outputs are the last value and up to two others."""
        made = [name for node in self.nodes for name in node.output if name]
        outputs = made[-1:] + [name for name in made[:-1] if self.chance(2 / len(made))][:2]
        graph = self.graph(outputs, list(self.feed.items()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


class _Tensors:
    """The context of `binding.bind`, for attributes that are tensors."""

    def converted(self, convert, proto):
        return convert(proto, self)

    @staticmethod
    def tensor(proto):
        return numpy_helper.to_array(proto)


def _value_info(name, array, maker, typed):
    """The ValueInfoProto of a value; some axes of a graph's inputs are left open or get a name."""
    if not isinstance(array, np.ndarray) or maker is None or not typed:
        return onnx.ValueInfoProto(name=name)
    if maker.chance(0.2):
        shape = None
    else:
        shape = [n if maker.chance(0.4) else maker.pick([None, f"n{n}"]) for n in array.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def random_model(seed, nodes=8):
    """Return (ModelProto, feed) of a random graph: both follow from the seed alone."""
    rng = np.random.default_rng(seed)
    opset = int(rng.choice([17, NEWEST, int(rng.integers(7, NEWEST + 1))], p=[0.4, 0.3, 0.3]))
    maker = GraphMaker(rng, opset)
    wanted = int(rng.integers(1, nodes + 1))
    for _ in range(20 * wanted):
        if len(maker.nodes) >= wanted:
            break
        maker.add_random_node()
    if not maker.nodes:
        maker.node("Identity", [maker.new()], {})
    return maker.model(), maker.feed
