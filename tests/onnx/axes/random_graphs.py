"""Small random graphs of many operators, through which rows are followed."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast.errors import Error

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class RandomGraph:
    """A graph that grows node by node; a node that cannot run with one row is dropped again."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        rank = int(self.rng.integers(2, 5))
        self.axis = int(self.rng.integers(rank))
        self.shape = [int(self.rng.integers(1, 5)) for _ in range(rank)]
        self.shape[self.axis] = 1
        self.token_axis = int(self.rng.integers(2))
        self.nodes, self.constants, self.values = [], {}, {}
        self.add_values({"x": np.zeros(self.shape, np.float32), "k": np.zeros([1, 3][:: 1 - 2 * self.token_axis], int)})
        self.axes = {"x": self.axis, "k": self.token_axis}

    def add_values(self, values):
        self.values |= values

    def declared(self, name, value, batch):
        shape = [("b" if axis == batch else n) for axis, n in enumerate(value.shape)]
        return helper.make_tensor_value_info(name, FLOAT if value.dtype == np.float32 else INT64, shape)

    def model(self, outputs):
        inputs = [self.declared(name, self.values[name], self.axes[name]) for name in ("x", "k")]
        results = [helper.make_empty_tensor_value_info(name) for name in outputs]
        constants = [numpy_helper.from_array(a, name) for name, a in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", inputs, results, constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return rnnfast.load(proto.SerializeToString())

    def feed(self, rng, count):
        from tests.onnx.axes.helpers import wild

        shape = list(self.shape)
        shape[self.axis] = count
        tokens = [3, 3]
        tokens[self.token_axis] = count
        return {"x": wild(rng, shape), "k": rng.integers(0, 3, tokens)}

    # ----------------------------------------------------------------------------------------- growth
    def constant(self, value):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def floats(self):
        return [name for name, v in self.values.items() if v.dtype == np.float32]

    def pick(self, names):
        """One of the names, later ones more often."""
        names = list(names)
        return names[max(self.rng.integers(len(names), size=2))]

    def like(self, value):
        """A value or constant that may broadcast with a value."""
        rng = self.rng
        if rng.random() < 0.5:
            names = [n for n in self.floats() if self.values[n].ndim <= value.ndim + 1]
            return self.pick(names)
        shape = [n if rng.random() < 0.6 else 1 for n in value.shape][int(rng.integers(value.ndim + 1)) :]
        return self.constant(rng.standard_normal(shape).astype(np.float32))

    def grow(self):
        """Add one random node."""
        before = len(self.nodes), dict(self.constants)
        made = getattr(self, self.pick_kind())()
        outputs = [f"v{len(self.values)}"] if made is None else made
        try:
            model = self.model(outputs)
            found = model({name: self.values[name] for name in ("x", "k")})
            if any(
                v.size == 0 or v.size > 2000 or v.ndim > 6 or v.dtype not in (np.float32, np.int64)
                for v in found.values()
            ):
                raise rnnfast.errors.InputError("too large, empty or of another type")
        except Error:
            del self.nodes[before[0] :]
            self.constants = before[1]
            return
        self.add_values(dict(found))

    def pick_kind(self):
        kinds = [name for name in dir(self) if name.startswith("make_")]
        return kinds[int(self.rng.integers(len(kinds)))]

    def node(self, op, inputs, n=1, **attributes):
        outputs = [f"v{len(self.values) + i}" for i in range(n)]
        self.nodes.append(helper.make_node(op, inputs, outputs, f"n{len(self.nodes)}", **attributes))
        return outputs

    def some(self):
        name = self.pick(self.floats())
        return name, self.values[name]

    def an_axis(self, value):
        return int(self.rng.integers(max(value.ndim, 1)))

    def make_unary(self):
        op = self.rng.choice(["Neg", "Tanh", "Abs", "Relu", "Sigmoid", "Exp", "Sqrt", "Identity", "Softplus", "Erf"])
        return self.node(str(op), [self.some()[0]])

    def make_binary(self):
        name, value = self.some()
        op = self.rng.choice(["Add", "Mul", "Sub", "Max", "Min", "Div"])
        pair = [name, self.like(value)]
        return self.node(str(op), pair if self.rng.random() < 0.5 else pair[::-1])

    def make_where(self):
        name, value = self.some()
        other = self.like(value)
        (bits,) = self.node("Greater", [name, other])
        outputs = [f"v{len(self.values)}"]
        self.nodes[-1].output[0] = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node("Where", [f"t{len(self.nodes)}", name, self.like(value)], outputs))
        return outputs

    def make_reduce(self):
        name, value = self.some()
        op = self.rng.choice(["ReduceMax", "ReduceMean", "ReduceSum", "ReduceL2", "ReduceLogSumExp"])
        axes = sorted({self.an_axis(value) for _ in range(int(self.rng.integers(1, 3)))})
        keep = int(self.rng.integers(2))
        if op == "ReduceSum":
            return self.node(str(op), [name, self.constant(np.array(axes, np.int64))], keepdims=keep)
        return self.node(str(op), [name], axes=axes, keepdims=keep)

    def make_softmax(self):
        name, value = self.some()
        return self.node(str(self.rng.choice(["Softmax", "LogSoftmax", "Hardmax"])), [name], axis=self.an_axis(value))

    def make_layer_norm(self):
        name, value = self.some()
        axis = self.an_axis(value)
        scale = self.constant(self.rng.standard_normal(value.shape[axis:]).astype(np.float32))
        return self.node("LayerNormalization", [name, scale], axis=axis)

    def make_cumsum(self):
        name, value = self.some()
        return self.node(
            "CumSum", [name, self.constant(np.array(self.an_axis(value)))], reverse=int(self.rng.integers(2))
        )

    def make_transpose(self):
        name, value = self.some()
        if not value.ndim:
            return self.make_unary()
        return self.node("Transpose", [name], perm=[int(i) for i in self.rng.permutation(value.ndim)])

    def make_reshape(self):
        name, value = self.some()
        rng, shape = self.rng, list(value.shape)
        if value.ndim > 1 and rng.random() < 0.6:  # join two axes
            i = int(rng.integers(value.ndim - 1))
            shape = [*shape[:i], shape[i] * shape[i + 1], *shape[i + 2 :]]
            at = i if rng.random() < 0.6 else int(rng.integers(len(shape)))
        else:  # part one
            i = int(rng.integers(max(value.ndim, 1)))
            n = shape[i] if shape else 1
            factor = int(rng.choice([m for m in range(1, n + 1) if n % m == 0]))
            shape = [*shape[:i], factor, n // factor, *shape[i + 1 :]]
            at = int(rng.integers(len(shape)))
        if rng.random() < 0.9:
            shape[at] = -1
        return self.node("Reshape", [name, self.constant(np.array(shape, np.int64))])

    def make_reshape_like(self):
        """A reshape to dimensions that are computed from those of another value."""
        name, value = self.some()
        other, _ = self.some()
        outputs = [f"v{len(self.values)}"]
        n = len(self.nodes)
        self.nodes.append(helper.make_node("Shape", [other], [f"s{n}"]))
        pick = self.constant(np.array(int(self.rng.integers(max(self.values[other].ndim, 1)))))
        self.nodes.append(helper.make_node("Gather", [f"s{n}", pick], [f"d{n}"]))
        self.nodes.append(
            helper.make_node("Mul", [f"d{n}", self.constant(np.array(int(self.rng.integers(1, 4))))], [f"e{n}"])
        )
        self.nodes.append(helper.make_node("Unsqueeze", [f"e{n}", self.constant(np.array([0]))], [f"u{n}"]))
        rest = self.constant(np.array([-1]))
        last = self.constant(np.array([value.shape[-1] if value.ndim else 1]))
        order = [f"u{n}", rest, last] if self.rng.random() < 0.7 else [rest, f"u{n}", last]
        self.nodes.append(helper.make_node("Concat", order, [f"w{n}"], axis=0))
        self.nodes.append(helper.make_node("Reshape", [name, f"w{n}"], outputs, f"n{n}"))
        return outputs

    def make_expand(self):
        name, value = self.some()
        other, _ = self.some()
        n, outputs = len(self.nodes), [f"v{len(self.values)}"]
        self.nodes.append(helper.make_node("Shape", [other], [f"s{n}"]))
        self.nodes.append(helper.make_node("Expand", [name, f"s{n}"], outputs, f"n{n}"))
        return outputs

    def make_zeros(self):
        other, _ = self.some()
        n, outputs = len(self.nodes), [f"v{len(self.values)}"]
        self.nodes.append(helper.make_node("Shape", [other], [f"s{n}"]))
        self.nodes.append(helper.make_node("ConstantOfShape", [f"s{n}"], outputs, f"n{n}"))
        return outputs

    def make_tile(self):
        name, value = self.some()
        return self.node("Tile", [name, self.constant(self.rng.integers(1, 3, value.ndim))])

    def make_unsqueeze(self):
        name, value = self.some()
        return self.node("Unsqueeze", [name, self.constant(np.array([int(self.rng.integers(value.ndim + 1))]))])

    def make_squeeze(self):
        name, value = self.some()
        ones = [i for i, m in enumerate(value.shape) if m == 1]
        axes = [self.constant(np.array([int(self.rng.choice(ones))]))] if ones and self.rng.random() < 0.9 else []
        return self.node("Squeeze", [name, *axes])

    def make_flatten(self):
        name, value = self.some()
        return self.node("Flatten", [name], axis=int(self.rng.integers(value.ndim + 1)))

    def make_concat(self):
        name, value = self.some()
        return self.node("Concat", [name, self.like(value)], axis=self.an_axis(value))

    def make_split(self):
        name, value = self.some()
        return self.node("Split", [name], 2, axis=self.an_axis(value))

    def make_slice(self):
        name, value = self.some()
        axis = self.an_axis(value)
        start, step = (
            (0, 1) if self.rng.random() < 0.5 else (int(self.rng.integers(-2, 3)), int(self.rng.choice([1, 2, -1])))
        )
        end = int(self.rng.choice([2**31 - 1, 2**63 - 1, 1, 2, -1]))
        return self.node("Slice", [name, *(self.constant(np.array([i])) for i in (start, end, axis, step))])

    def make_pad(self):
        name, value = self.some()
        pads = self.rng.integers(0, 2, 2 * value.ndim) * (self.rng.random(2 * value.ndim) < 0.4)
        return self.node(
            "Pad", [name, self.constant(pads.astype(np.int64))], mode=str(self.rng.choice(["constant", "edge"]))
        )

    def make_gather(self):
        name, value = self.some()
        axis = self.an_axis(value)
        if self.rng.random() < 0.4:
            return self.node("Gather", [name, "k"], axis=axis)
        n = value.shape[axis] if value.ndim else 1
        return self.node(
            "Gather", [name, self.constant(self.rng.integers(0, n, int(self.rng.integers(1, 3))))], axis=axis
        )

    def make_embedding(self):
        return self.node("Gather", [self.constant(self.rng.standard_normal((3, 4)).astype(np.float32)), "k"])

    def make_gather_elements(self):
        name, value = self.some()
        axis = self.an_axis(value)
        n = len(self.nodes)
        self.nodes.append(helper.make_node("ArgMax", [name], [f"a{n}"], axis=axis, keepdims=1))
        outputs = [f"v{len(self.values)}"]
        other = name if self.rng.random() < 0.5 else self.like(value)
        self.nodes.append(helper.make_node("GatherElements", [other, f"a{n}"], outputs, f"n{n}", axis=axis))
        return outputs

    def make_top_k(self):
        name, value = self.some()
        return self.node("TopK", [name, self.constant(np.array([1]))], 2, axis=self.an_axis(value))

    def make_matmul(self):
        name, value = self.some()
        rng = self.rng
        if rng.random() < 0.6 and value.ndim:
            w = rng.standard_normal((value.shape[-1], 3)).astype(np.float32)
            return self.node("MatMul", [name, self.constant(w)])
        if rng.random() < 0.5 and value.ndim > 1:
            w = rng.standard_normal((3, value.shape[-2])).astype(np.float32)
            return self.node("MatMul", [self.constant(w), name])
        return self.node("MatMul", [name, self.pick(self.floats())])

    def make_gemm(self):
        name, value = self.some()
        turned = int(self.rng.integers(2))
        w = self.rng.standard_normal((value.shape[0 if turned else -1] if value.ndim == 2 else 1, 3)).astype(np.float32)
        bias = self.constant(self.rng.standard_normal(3).astype(np.float32))
        return self.node("Gemm", [name, self.constant(w), bias], transA=turned)

    def make_einsum(self):
        name, value = self.some()
        letters = "abcdef"[: value.ndim]
        out = "".join(self.rng.permutation(list(letters))[: int(self.rng.integers(value.ndim + 1))])
        return self.node("Einsum", [name, name], equation=f"{letters},{letters}->{out}")

    def make_conv(self):
        name, value = self.some()
        if value.ndim != 3:
            return self.make_unary()
        size = int(self.rng.integers(1, 4))
        w = self.constant(self.rng.standard_normal((2, value.shape[1], size)).astype(np.float32))
        return self.node("Conv", [name, w], pads=[size // 2, size // 2])

    def make_pool(self):
        name, value = self.some()
        if value.ndim != 3:
            return self.make_unary()
        return self.node(
            str(self.rng.choice(["MaxPool", "AveragePool"])), [name], kernel_shape=[int(self.rng.integers(1, 3))]
        )

    def make_norm(self):
        name, value = self.some()
        scale = self.constant(np.ones(value.shape[1] if value.ndim > 1 else 1, np.float32))
        return self.node("InstanceNormalization", [name, scale, scale])

    def make_lstm(self):
        name, value = self.some()
        if value.ndim != 3:
            return self.make_unary()
        rng, layout = self.rng, int(self.rng.integers(2))
        w, r = (self.constant(rng.standard_normal((1, 12, n)).astype(np.float32) / 2) for n in (value.shape[2], 3))
        return self.node("LSTM", [name, w, r], 2, hidden_size=3, layout=layout)

    def make_scatter(self):
        name, value = self.some()
        axis, n = self.an_axis(value), len(self.nodes)
        self.nodes.append(helper.make_node("ArgMax", [name], [f"a{n}"], axis=axis, keepdims=1))
        self.nodes.append(helper.make_node("ReduceMax", [name], [f"m{n}"], axes=[axis], keepdims=1))
        outputs = [f"v{len(self.values)}"]
        self.nodes.append(helper.make_node("ScatterElements", [name, f"a{n}", f"m{n}"], outputs, f"n{n}", axis=axis))
        return outputs

    def make_dynamic(self):
        name, _ = self.some()
        n, outputs = len(self.nodes), [f"v{len(self.values)}"]
        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [name], [f"q{n}", f"qs{n}", f"qz{n}"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"q{n}", f"qs{n}", f"qz{n}"], outputs, f"n{n}"))
        return outputs
