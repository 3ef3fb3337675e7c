"""Inputs and attributes of a random node: a recipe for operators whose inputs must fit each other, else the schema.

A recipe takes the GraphMaker and the operator's name; it returns (names of inputs, attributes) and, where there are
several outputs, their number; None where the operator cannot be made now.
"""

import functools

import numpy as np
from onnx import defs, helper, numpy_helper

F32, I64, I32, BOOL, U8, I8 = (np.dtype(t) for t in ("f4", "i8", "i4", "?", "u1", "i1"))
FLOATS = (F32, np.dtype("f8"), np.dtype("f2"))
ANY = (F32, I64, I32, BOOL, *FLOATS[1:], U8, I8)
ATTRIBUTE_INT, ATTRIBUTE_FLOAT, ATTRIBUTE_INTS = (
    getattr(defs.OpSchema.AttrType, name) for name in ("INT", "FLOAT", "INTS")
)
WILD_INTS = (-(2**63), -(2**31) - 1, -65, -5, -1, 0, 1, 2, 5, 64, 2**31, 2**40, 2**63 - 1)
WILD_FLOATS = (float("nan"), float("inf"), -1e38, -1.0, 0.0, 1e-40, 3.0, 1e38)


# ---------------------------------------------------------------------------------------------- any operator
@functools.lru_cache(4096)
def schema(op_type, opset):
    """Return the ONNX schema of an operator at an opset, or None."""
    try:
        return defs.get_schema(op_type, opset, "")
    except defs.SchemaError:
        return None


@functools.lru_cache(4096)
def allowed(type_strings):
    """The dtypes among the element types that a formal input allows."""
    return tuple(t for t in ANY if f"tensor({_type_name(t)})" in type_strings)


def _type_name(dtype):
    return {"f4": "float", "f8": "double", "f2": "float16", "b1": "bool"}.get(dtype.str[1:], dtype.name)


def by_schema(g, op_type):
    """Inputs that share types where the schema says so; the second input's shape broadcasts with the first one's."""
    known, chosen, inputs = schema(op_type, g.opset), {}, []
    for i, formal in enumerate(known.inputs):
        if formal.option == defs.OpSchema.FormalParameterOption.Optional and g.chance(0.5):
            inputs.append("")
            continue
        dtypes = chosen.get(formal.type_str) or allowed(frozenset(formal.types))
        if not dtypes:
            return None
        copies = 1
        if formal.option == defs.OpSchema.FormalParameterOption.Variadic:
            copies = int(g.rng.integers(1, 4))
        for j in range(copies):
            if (i or j) and inputs and inputs[0] and chosen.get(formal.type_str) == (g.values[inputs[0]].dtype,):
                name = g.like(inputs[0])
            else:
                name = g.value(dtypes)
            inputs.append(name)
            chosen.setdefault(formal.type_str, (g.values[name].dtype,))
    return inputs, random_attributes(g, known), max(1, known.min_output)


def random_attributes(g, known, skip=()):
    """Some of the attributes of a schema with small random values."""
    made = {}
    for name, attribute in known.attributes.items():
        if name in skip or not (attribute.required or g.chance(0.4)):
            continue
        if attribute.type == ATTRIBUTE_INT:
            made[name] = int(g.pick([-2, -1, 0, 0, 1, 1, 2, 3, 7]))
        elif attribute.type == ATTRIBUTE_FLOAT:
            made[name] = float(g.rng.uniform(-1, 2))
        elif attribute.type == ATTRIBUTE_INTS:
            made[name] = [int(n) for n in g.rng.integers(0, 3, int(g.rng.integers(1, 4)))]
    return made


def spoil(g, op_type, inputs, attributes):
    """Change one input or attribute to a hostile one."""
    known = schema(op_type, g.opset)
    if inputs and g.chance(0.5):
        i = int(g.rng.integers(len(inputs)))
        if (
            inputs[i]
            and isinstance(g.values[inputs[i]], np.ndarray)
            and g.values[inputs[i]].ndim == 1
            and g.chance(0.5)
        ):
            shape = np.shape(g.values[inputs[i]])
            if g.values[inputs[i]].dtype.kind in "iu":
                with np.errstate(all="ignore"):
                    wild = np.array([g.pick(WILD_INTS) for _ in range(shape[0])], np.int64)
                    inputs[i] = g.constant(wild.astype(g.values[inputs[i]].dtype))
                return
        inputs[i] = g.value(ANY)
    elif known.attributes:
        name = g.pick(sorted(known.attributes))
        kind = known.attributes[name].type
        if kind == ATTRIBUTE_INT:
            attributes[name] = g.pick(WILD_INTS)
        elif kind == ATTRIBUTE_FLOAT:
            attributes[name] = g.pick(WILD_FLOATS)
        elif kind == ATTRIBUTE_INTS:
            attributes[name] = [g.pick(WILD_INTS) for _ in range(int(g.rng.integers(0, 4)))] or None


def has_input(g, op_type, name):
    return any(formal.name == name for formal in schema(op_type, g.opset).inputs)


def ints(g, *values):
    return g.constant(np.array(values, np.int64))


def axis_of(g, array):
    """A valid axis, counted from either end."""
    return int(g.rng.integers(-array.ndim, array.ndim)) if array.ndim else 0


# ---------------------------------------------------------------------------------------------- elementwise
def pow_(g, op_type):
    base = g.value(FLOATS[:2])
    exponent = g.constant(g.array(g.values[base].dtype, ())) if g.chance(0.5) else g.like(base)
    return [base, exponent], {}


def clip(g, op_type):
    x = g.value((F32, I64, I32))
    if not has_input(g, op_type, "min"):
        return ([x], {"min": -0.5, "max": float(g.rng.uniform(-1, 2))}) if g.values[x].dtype == F32 else None
    dtype = g.values[x].dtype
    bounds = [g.constant(np.array(g.rng.integers(-2, 3), dtype)) if g.chance(0.8) else "" for _ in range(2)]
    return [x, *bounds], {}


def where(g, op_type):
    x = g.value(ANY)
    condition = g.new(BOOL, tuple(1 if g.chance(0.3) else n for n in g.values[x].shape))
    return [condition, x, g.like(x)], {}


def cast(g, op_type):
    target = helper.np_dtype_to_tensor_dtype(g.pick((F32, F32, I64, I32, BOOL, U8, I8, FLOATS[1], FLOATS[2])))
    return [g.value(ANY)], {"to": int(target)}


# ---------------------------------------------------------------------------------------------- products
def matmul(g, op_type):
    a = g.value((F32,), rank=(1, 2, 3, 4))
    k, lead = g.values[a].shape[-1], g.values[a].shape[:-2]
    b = g.new(F32, (*(lead if g.chance(0.3) else ()), k, g.size()))
    return [a, b], {}


def integer_product(g, op_type):
    a = g.value((U8, I8), rank=(2, 3))
    b = g.new(g.pick((U8, I8)), (g.values[a].shape[-1], g.size()))
    zero = g.constant(g.array(g.values[a].dtype, ())) if g.chance(0.5) else ""
    return [a, b, zero, g.constant(g.array(g.values[b].dtype, ())) if g.chance(0.5) else ""], {}


def quantized_product(g, op_type):
    """QLinearMatMul: (a, scale, zero, b, scale, zero, scale, zero)."""
    a = g.value((U8, I8), rank=(2, 3))
    b = g.new(g.pick((U8, I8)), (g.values[a].shape[-1], g.size()))
    inputs = []
    for dtype, names in ((g.values[a].dtype, [a]), (g.values[b].dtype, [b]), (g.pick((U8, I8)), [])):
        inputs += [*names, g.constant(np.float32(g.rng.uniform(0.01, 0.2))), g.constant(g.array(dtype, ()))]
    return inputs, {}


def gemm(g, op_type):
    a = g.value((F32,), rank=2)
    trans_a, trans_b = int(g.chance(0.3)), int(g.chance(0.5))
    k, m = g.values[a].shape[::-1] if not trans_a else g.values[a].shape
    n = g.size()
    b = g.new(F32, (n, k) if trans_b else (k, n))
    c = g.new(F32, g.pick([(n,), (1, n), (m, n), (m, 1), (1,), ()])) if g.chance(0.7) or g.opset < 11 else ""
    attributes = {"transA": trans_a, "transB": trans_b}
    if g.chance(0.3):
        attributes |= {"alpha": float(g.rng.normal()), "beta": float(g.rng.normal())}
    return [a, b, c], attributes


def einsum(g, op_type):
    a = g.value((F32,), rank=2)
    n, k = g.values[a].shape
    equation, shape = g.pick([("ij,jk->ik", (k, 3)), ("ij,ij->i", (n, k)), ("ij,kj->ki", (2, k)), ("ij,j->ij", (k,))])
    return [a, g.new(F32, shape)], {"equation": equation}


def recurrent(g, op_type):
    """RNN, LSTM or GRU with any attributes."""
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[op_type]
    x = g.value((F32,), rank=3)
    layout = int(g.opset >= 14 and g.chance(0.3))
    steps, rows, size = g.values[x].shape
    if layout:
        steps, rows = rows, steps
    hidden, direction = int(g.pick([1, 3, 4, 8, 17, 33])), g.pick(["forward", "forward", "reverse", "bidirectional"])
    n = 2 if direction == "bidirectional" else 1
    w, r = (g.constant(g.array(F32, (n, gates * hidden, k)) * np.float32(0.3 / k**0.5)) for k in (max(size, 1), hidden))
    w = w if size else g.new(F32, (n, gates * hidden, 0))
    b = g.new(F32, (n, 2 * gates * hidden)) if g.chance(0.7) else ""
    lengths = g.constant(g.rng.integers(0, steps + 1, rows).astype(np.int32)) if g.chance(0.3) else ""
    of_state = (rows, n, hidden) if layout else (n, rows, hidden)
    inputs = [x, w, r, b, lengths, g.new(F32, of_state) if g.chance(0.4) else ""]
    attributes = {"hidden_size": hidden, "direction": direction}
    if layout:
        attributes["layout"] = 1
    if op_type == "LSTM":
        inputs += [g.new(F32, of_state) if g.chance(0.4) else "", g.new(F32, (n, 3 * hidden)) if g.chance(0.2) else ""]
        attributes["input_forget"] = int(g.chance(0.15))
    if op_type == "GRU":
        attributes["linear_before_reset"] = int(g.chance(0.5))
    if g.chance(0.15):
        attributes["clip"] = float(g.rng.uniform(0.1, 3))
    if g.chance(0.2):
        count = {"RNN": 1, "LSTM": 3, "GRU": 2}[op_type] * n
        names = [
            "Relu",
            "Tanh",
            "Sigmoid",
            "Affine",
            "LeakyRelu",
            "ThresholdedRelu",
            "ScaledTanh",
            "HardSigmoid",
            "Elu",
        ]
        attributes["activations"] = [g.pick([*names, "Softsign", "Softplus"]) for _ in range(count)]
        for name in ("activation_alpha", "activation_beta"):
            if g.chance(0.3):
                attributes[name] = [float(v) for v in g.rng.uniform(0.1, 1, count)]
    return inputs, attributes, int(g.rng.integers(1, 3 + (op_type == "LSTM")))


# ---------------------------------------------------------------------------------------------- windows
def _image(g, ranks=(3, 4)):
    return g.value((F32,), rank=ranks, test=lambda v: v.size > 0 and max(v.shape[2:], default=1) <= 40)


def _windows(g, spatial, kernel):
    """Attributes of windows of this kernel."""
    attributes = {"kernel_shape": kernel}
    if g.chance(0.4):
        attributes["strides"] = [int(g.rng.integers(1, 4)) for _ in spatial]
    if g.chance(0.3):
        attributes["auto_pad"] = g.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif g.chance(0.6):
        attributes["pads"] = [int(g.rng.integers(0, k)) for k in kernel * 2]
    return attributes


def conv(g, op_type):
    x = _image(g)
    _, channels, *spatial = g.values[x].shape
    kernel = [int(g.rng.integers(1, min(n, 5) + 1)) for n in spatial]
    group = channels if g.chance(0.3) else 1
    outputs = channels * int(g.rng.integers(1, 3)) if group > 1 else int(g.pick([1, 2, 3, 8, 17]))
    attributes = _windows(g, spatial, kernel) | {"group": group}
    if g.chance(0.3):
        attributes["dilations"] = [int(g.rng.integers(1, 3)) for _ in spatial]
    if op_type == "ConvTranspose":
        w = g.new(F32, (channels, outputs // group if group > 1 else outputs, *kernel))
        if g.chance(0.2):
            attributes["output_padding"] = [int(g.rng.integers(0, 2)) for _ in spatial]
        elif g.chance(0.15):
            attributes.pop("pads", None)
            attributes["output_shape"] = [n * 2 + int(g.rng.integers(-1, 2)) for n in spatial]
        return [x, w, g.new(F32, (w_outputs(g, w, group),)) if g.chance(0.3) else ""], attributes
    w = g.new(F32, (outputs, channels // group, *kernel))
    return [x, w, g.new(F32, (outputs,)) if g.chance(0.6) else ""], attributes


def w_outputs(g, w, group):
    """The number of output channels of a ConvTranspose with weights `w`."""
    return g.values[w].shape[1] * group


def integer_conv(g, op_type):
    """ConvInteger, or QLinearConv: (x, scale, zero, w, scale, zero, scale, zero, bias)."""
    x = g.new(g.pick((U8, I8)), (g.pick([1, 2]), g.pick([1, 2, 3]), g.size(), g.pick([3, 5, 8])))
    _, channels, *spatial = g.values[x].shape
    kernel = [int(g.rng.integers(1, min(max(n, 1), 3) + 1)) for n in spatial]
    group = channels if g.chance(0.3) else 1
    w = g.new(I8 if g.chance(0.5) else U8, (group * g.pick([1, 4]), channels // group, *kernel))
    attributes = _windows(g, spatial, kernel) | {"group": group}
    if g.chance(0.3):
        attributes["dilations"] = [int(g.rng.integers(1, 3)) for _ in spatial]
    zeros = [g.constant(g.array(g.values[name].dtype, ())) for name in (x, w)]
    if op_type == "ConvInteger":
        return [x, w, *zeros], attributes
    scales = [g.constant(np.float32(g.rng.uniform(0.01, 0.2))) for _ in range(3)]
    zero = g.constant(g.array(g.pick((U8, I8)), ()))
    bias = g.constant(g.array(I32, (g.values[w].shape[0],))) if g.chance(0.5) else ""
    return [x, scales[0], zeros[0], w, scales[1], zeros[1], scales[2], zero, bias], attributes


def pool(g, op_type):
    x = _image(g)
    spatial = g.values[x].shape[2:]
    attributes = _windows(g, spatial, [int(g.rng.integers(1, min(n, 4) + 1)) for n in spatial])
    if g.opset >= 10 and g.chance(0.3):
        attributes["ceil_mode"] = 1
    known = schema(op_type, g.opset).attributes
    if "count_include_pad" in known and g.chance(0.3):
        attributes["count_include_pad"] = 1
    if "dilations" in known and g.chance(0.2):
        attributes["dilations"] = [int(g.rng.integers(1, 3)) for _ in spatial]
    if op_type == "LpPool" and g.chance(0.5):
        attributes["p"] = int(g.rng.integers(1, 4))
    if op_type == "MaxPool" and g.chance(0.2):
        return [x], attributes | ({"storage_order": int(g.chance(0.5))} if g.opset >= 8 else {}), 2
    return [x], attributes


def channel_normalization(g, op_type):
    x = _image(g, (2, 3, 4)) if op_type == "BatchNormalization" else _image(g)
    channels = g.values[x].shape[1]
    inputs = [x, g.new(F32, (channels,)), g.new(F32, (channels,))]
    if op_type == "BatchNormalization":
        variance = g.constant(np.abs(g.array(F32, (channels,))) + np.float32(0.1))
        inputs += [g.new(F32, (channels,)), variance]
        if g.opset >= 14 and g.chance(0.1):
            return inputs, {"training_mode": 1, "momentum": 0.7}, 3
    return inputs, {"epsilon": 1e-3}


def group_normalization(g, op_type):
    groups = g.pick([1, 2, 3])
    channels = groups * g.pick([1, 2, 4])
    x = g.new(F32, (g.size(), channels, g.size()))
    length = channels if g.opset >= 21 else groups
    return [x, g.new(F32, (length,)), g.new(F32, (length,))], {"num_groups": groups}


def layer_normalization(g, op_type):
    x = g.value((F32,), rank=(1, 2, 3, 4))
    axis = axis_of(g, g.values[x])
    shape = g.values[x].shape[axis:]
    inputs = [x, g.new(F32, shape)]
    if op_type == "LayerNormalization" and g.chance(0.6):
        inputs.append(g.new(F32, shape))
    attributes = {"axis": axis} | ({"epsilon": 1e-3} if g.chance(0.3) else {})
    return inputs, attributes, int(g.pick([1, 1, 1, 3])) if op_type == "LayerNormalization" else 1


def gelu(g, op_type):
    return [g.value((F32,))], {"approximate": g.pick(["none", "tanh"])}


def swiglu(g, op_type):
    x = g.value(FLOATS)
    return [x, g.new(g.values[x].dtype, g.values[x].shape)], {"alpha": 1.5} if g.chance(0.5) else {}


# ---------------------------------------------------------------------------------------------- reductions
def reduction(g, op_type):
    x = g.value((F32, F32, I64, I32))
    array, attributes = g.values[x], {"keepdims": int(g.chance(0.6))}
    axes = [axis_of(g, array) for _ in range(int(g.rng.integers(1, 3)))] if array.ndim else []
    axes = list({axis % array.ndim: axis for axis in axes}.values())
    if not axes or g.chance(0.15):
        if "noop_with_empty_axes" in schema(op_type, g.opset).attributes and g.chance(0.5):
            return [x, ints(g)] if g.chance(0.5) else [x], attributes | {"noop_with_empty_axes": 1}
        return [x], attributes
    if has_input(g, op_type, "axes"):
        return [x, ints(g, *axes)], attributes
    return [x], attributes | {"axes": axes}


def along_axis(g, op_type):
    """Operators with an `axis` attribute and one input."""
    x = g.value((F32,), rank=(1, 2, 3, 4))
    known = schema(op_type, g.opset)
    attributes = random_attributes(g, known, ("axis", "p"))
    if op_type == "LpNormalization" and g.chance(0.6):
        attributes["p"] = int(g.rng.integers(1, 3))
    return [x], attributes | {"axis": axis_of(g, g.values[x])}


def cumulative(g, op_type):
    x = g.value((F32, I64), rank=(1, 2, 3))
    axis = g.constant(np.array(axis_of(g, g.values[x]), np.int64))
    return [x, axis], {"exclusive": int(g.chance(0.4)), "reverse": int(g.chance(0.4))}


def top_k(g, op_type):
    x = g.value((F32, I64), rank=(1, 2, 3))
    axis = axis_of(g, g.values[x])
    k = int(g.rng.integers(0, g.values[x].shape[axis] + 1))
    if not has_input(g, op_type, "K"):
        return [x], {"k": max(k, 1), "axis": axis}, 2
    attributes = {"axis": axis} | ({"largest": int(g.chance(0.5)), "sorted": 1} if g.opset >= 11 else {})
    return [x, ints(g, k)], attributes, 2


# ---------------------------------------------------------------------------------------------- shapes
def reshape(g, op_type):
    x = g.value(ANY)
    sizes = list(g.values[x].shape)
    g.rng.shuffle(sizes)
    if len(sizes) > 1 and g.chance(0.5):
        sizes[0:2] = [sizes[0] * sizes[1]]
    if g.chance(0.3):
        sizes.insert(int(g.rng.integers(len(sizes) + 1)), 1)
    if sizes and g.chance(0.4):
        sizes[int(g.rng.integers(len(sizes)))] = -1
    return [x, ints(g, *sizes)], {}


def expand(g, op_type):
    x = g.value(ANY)
    sizes = [g.size() if n == 1 else n for n in g.values[x].shape]
    return [x, ints(g, *([g.size()] if g.chance(0.3) else []), *sizes)], {}


def tile(g, op_type):
    x = g.value(ANY)
    return [x, ints(g, *[int(g.rng.integers(0, 4)) for _ in range(g.values[x].ndim)])], {}


def transpose(g, op_type):
    x = g.value(ANY)
    if g.values[x].ndim == 0 or g.chance(0.1):
        return [x], {}
    return [x], {"perm": [int(n) for n in g.rng.permutation(g.values[x].ndim)]}


def squeeze(g, op_type):
    x = g.value(ANY)
    array = g.values[x]
    if op_type == "Unsqueeze":
        axes = sorted({int(n) for n in g.rng.integers(0, array.ndim + 1, int(g.rng.integers(1, 3)))})
    else:
        axes = [i for i, n in enumerate(array.shape) if n == 1 and g.chance(0.7)]
    if not axes:
        return ([x], {}) if op_type == "Squeeze" else None
    return ([x, ints(g, *axes)], {}) if has_input(g, op_type, "axes") else ([x], {"axes": axes})


def slice_(g, op_type):
    x = g.value(ANY, rank=(1, 2, 3, 4))
    array = g.values[x]
    axes = sorted({axis_of(g, array) % array.ndim for _ in range(int(g.rng.integers(1, 3)))})
    starts = [int(g.rng.integers(-array.shape[a] - 1, array.shape[a] + 2)) for a in axes]
    ends = [int(g.pick([g.rng.integers(-array.shape[a] - 1, array.shape[a] + 2), 2**63 - 1])) for a in axes]
    if not has_input(g, op_type, "starts"):
        return [x], {"starts": starts, "ends": ends, "axes": axes}
    steps = [int(g.pick([1, 1, 2, 3, -1, -2])) for _ in axes]
    return [x, ints(g, *starts), ints(g, *ends), ints(g, *axes), ints(g, *steps)], {}


def concat(g, op_type):
    x = g.value(ANY, rank=(1, 2, 3, 4))
    array = g.values[x]
    axis = axis_of(g, array)
    names = [x]
    for _ in range(int(g.rng.integers(0, 3))):
        shape = list(array.shape)
        shape[axis] = g.size()
        names.append(g.new(array.dtype, shape))
    g.rng.shuffle(names)
    return names, {"axis": axis}


def split(g, op_type):
    x = g.value(ANY, rank=(1, 2, 3))
    axis = axis_of(g, g.values[x])
    length, parts = g.values[x].shape[axis], int(g.rng.integers(1, 4))
    if g.opset >= 18 and g.chance(0.3):
        return [x], {"axis": axis, "num_outputs": parts}, parts
    cuts = np.sort(g.rng.integers(0, length + 1, parts - 1))
    sizes = [int(n) for n in np.diff(np.concatenate(([0], cuts, [length])))]
    if has_input(g, op_type, "split"):
        return [x, ints(g, *sizes)], {"axis": axis}, parts
    return [x], {"axis": axis, "split": sizes}, parts


def pad(g, op_type):
    x = g.value((F32, F32, I64), rank=(1, 2, 3, 4))
    pads = [int(n) for n in g.rng.integers(-1, 4, 2 * g.values[x].ndim)]
    mode = g.pick(["constant", "constant", "reflect", "edge"])
    if not has_input(g, op_type, "pads"):
        return ([x], {"pads": pads, "mode": mode}) if g.values[x].dtype == F32 else None
    fill = g.constant(g.array(g.values[x].dtype, ())) if g.chance(0.4) else ""
    return [x, ints(g, *pads), fill], {"mode": mode}


def depth_space(g, op_type):
    x = g.new(F32, (g.size(), 4 * g.pick([1, 2]), 2 * g.pick([1, 3]), 2 * g.pick([1, 2])))
    mode = {"mode": g.pick(["DCR", "CRD"])} if op_type == "DepthToSpace" and g.opset >= 11 else {}
    return [x], {"blocksize": 2} | mode


def reverse_sequence(g, op_type):
    x = g.value(ANY, rank=(2, 3))
    time = int(g.chance(0.5))
    shape = g.values[x].shape
    lengths = g.rng.integers(0, shape[time] + 1, shape[1 - time])
    return [x, g.constant(lengths.astype(np.int64))], {"time_axis": time, "batch_axis": 1 - time}


def constant_of_shape(g, op_type):
    value = numpy_helper.from_array(g.array(g.pick(ANY), (1,)))
    return [ints(g, *g.shape())], {"value": value} if g.chance(0.7) else {}


def range_(g, op_type):
    dtype = g.pick((F32, I64, I32))
    numbers = [g.rng.integers(-3, 3), g.rng.integers(-3, 20), g.pick([1, 2, 3, -1])]
    return [g.constant(np.array(n, dtype)) for n in numbers], {}


def one_hot(g, op_type):
    indices = g.value((I64, I32))
    values = g.constant(np.array([0, 1], g.pick((F32, I64))))
    return [indices, g.constant(np.array(g.size(), np.int64)), values], {"axis": -1}


def constant(g, op_type):
    number, count = float(g.rng.normal()), int(g.rng.integers(0, 4))
    plain = {"value_float": number, "value_int": int(10 * number), "value_string": "text"}
    plain |= {"value_floats": [number] * count, "value_ints": list(range(count)), "value_strings": ["a", "b"]}
    name = g.pick(sorted(plain))
    if g.opset >= 12 and plain[name] and g.chance(0.4):
        return [], {name: plain[name]}
    return [], {"value": numpy_helper.from_array(g.array(g.pick(ANY), g.shape()))}


# ---------------------------------------------------------------------------------------------- indexing
def gather(g, op_type):
    data = g.value(ANY, rank=(1, 2, 3))
    array = g.values[data]
    axis = axis_of(g, array)
    length = array.shape[axis]
    shape = g.shape(int(g.rng.integers(0, 3)), 200)
    if op_type != "Gather":
        shape = [g.rng.integers(0, n + 1) for n in array.shape]
    indices = g.rng.integers(-length, max(length, 1), shape) if length else np.zeros(shape)
    indices = np.asarray(indices).astype(g.pick((I64, I64, I32)))
    name = g.constant(indices)
    if op_type in ("Scatter", "ScatterElements"):
        attributes = {"axis": axis}
        if g.opset >= 18 and g.chance(0.5):
            attributes["reduction"] = g.pick(["add", "mul", "max", "min"])
        return [data, name, g.new(array.dtype, indices.shape)], attributes
    return [data, name], {"axis": axis}


def gather_nd(g, op_type):
    data = g.value(ANY, rank=(1, 2, 3), test=lambda v: v.size > 0)
    array = g.values[data]
    depth = int(g.rng.integers(1, array.ndim + 1))
    rows = g.shape(1, 50)
    places = np.stack([g.rng.integers(-n, n, rows) for n in array.shape[:depth]], -1).astype(np.int64)
    if op_type == "GatherND":
        return [data, g.constant(places)], {}
    attributes = {"reduction": g.pick(["add", "mul", "max", "min"])} if g.opset >= 18 and g.chance(0.4) else {}
    return [data, g.constant(places), g.new(array.dtype, (*rows, *array.shape[depth:]))], attributes


def compress(g, op_type):
    data = g.value(ANY, rank=(1, 2, 3))
    axis = axis_of(g, g.values[data])
    return [data, g.new(BOOL, (g.values[data].shape[axis],))], {"axis": axis}


# ---------------------------------------------------------------------------------------------- integers
def shift(g, op_type):
    x = g.value((U8,))
    return [x, g.new(U8, g.values[x].shape)], {"direction": g.pick(["LEFT", "RIGHT"])}


def quantize(g, op_type):
    """One scale for all, one for each index along an axis, or one for each block along it."""
    dtype = g.pick((U8, I8))
    x = g.value((F32,) if op_type == "QuantizeLinear" else (dtype,))
    shape, attributes = g.values[x].shape, {}
    of_scale = ()
    if shape and g.opset >= 13 and g.chance(0.5):
        axis = axis_of(g, g.values[x])
        attributes["axis"], length = axis, shape[axis]
        of_scale = (length,)
        if g.opset >= 21 and length and g.chance(0.5):
            block = int(g.pick([n for n in range(1, length + 1) if length % n == 0]))
            attributes["block_size"] = block
            of_scale = tuple(length // block if i == axis % len(shape) else n for i, n in enumerate(shape))
    scale = g.constant(np.asarray(g.rng.uniform(0.01, 0.2, of_scale), F32))
    if g.chance(0.2):
        if op_type == "QuantizeLinear" and g.opset >= 21:
            attributes["output_dtype"] = int(helper.np_dtype_to_tensor_dtype(dtype))
        return [x, scale], attributes
    return [x, scale, g.constant(g.array(dtype, of_scale))], attributes


# ---------------------------------------------------------------------------------------------- sequences
def sequence(g, op_type):
    """Operators that take a sequence; SequenceConstruct makes one."""
    if op_type == "SequenceConstruct":
        x = g.value((F32,))
        return [x] + [g.like(x) for _ in range(int(g.rng.integers(0, 3)))], {}
    found = [name for name, value in g.values.items() if isinstance(value, list) and value]
    if not found:
        made, attributes = sequence(g, "SequenceConstruct")
        if not g.node("SequenceConstruct", made, attributes):
            return None
        found = [g.nodes[-1].output[0]]
    name = g.pick(found)
    place = g.constant(np.array(g.rng.integers(-len(g.values[name]), len(g.values[name])), np.int64))
    if op_type == "SequenceInsert":
        return [name, g.value((g.values[name][0].dtype,)), place], {}
    if op_type in ("SequenceAt", "SequenceErase"):
        return [name, place], {}
    if op_type == "ConcatFromSequence":
        return [name], {"axis": 0, "new_axis": int(g.chance(0.5))}
    return [name], {}


def split_to_sequence(g, op_type):
    x = g.value((F32,), rank=(1, 2, 3))
    return [x], {"axis": axis_of(g, g.values[x]), "keepdims": int(g.chance(0.5))}


RECIPES = {
    "Pow": pow_,
    "Clip": clip,
    "Where": where,
    "Cast": cast,
    "MatMul": matmul,
    "MatMulInteger": integer_product,
    "QLinearMatMul": quantized_product,
    "Gemm": gemm,
    "Einsum": einsum,
    **dict.fromkeys(("RNN", "LSTM", "GRU"), recurrent),
    **dict.fromkeys(("Conv", "ConvTranspose"), conv),
    **dict.fromkeys(("ConvInteger", "QLinearConv"), integer_conv),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), lambda g, op_type: ([_image(g)], {})),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), channel_normalization),
    "GroupNormalization": group_normalization,
    "Gelu": gelu,
    "SwiGLU": swiglu,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_normalization),
    **dict.fromkeys(
        [f"Reduce{name}" for name in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()], reduction
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "LpNormalization", "Flatten"), along_axis),
    **dict.fromkeys(("CumSum", "CumProd"), cumulative),
    "TopK": top_k,
    "Reshape": reshape,
    "Expand": expand,
    "Tile": tile,
    "Transpose": transpose,
    **dict.fromkeys(("Squeeze", "Unsqueeze"), squeeze),
    "Slice": slice_,
    "Concat": concat,
    "Split": split,
    "Pad": pad,
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), depth_space),
    "ReverseSequence": reverse_sequence,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "OneHot": one_hot,
    "Constant": constant,
    **dict.fromkeys(("Gather", "GatherElements", "Scatter", "ScatterElements"), gather),
    **dict.fromkeys(("GatherND", "ScatterND"), gather_nd),
    "Compress": compress,
    "BitShift": shift,
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
    **dict.fromkeys(
        "SequenceConstruct SequenceAt SequenceErase SequenceInsert SequenceLength ConcatFromSequence".split(), sequence
    ),
    "SplitToSequence": split_to_sequence,
}
