"""Operators found and their attributes checked against the function's signature, once, at load."""

import functools
import inspect
import types
import typing
from typing import Literal, NamedTuple

from rnnfast.errors import ModelError, UnsupportedError
from rnnfast.onnx import ops, tensors
from rnnfast.onnx.ops.types import Dtype, Floats, Ints, Strs, Subgraph, Tensor

# From this opset on the operators' broadcasting and inference modes are today's; see `_same_before`.
MODERN_OPSET = 7
# Changed by opset 7 only by a new attribute, whose default is the older meaning.
EXTENDED_BY_7 = {"AveragePool"}

ATTRIBUTE_TYPES = {
    1: "FLOAT",
    2: "INT",
    3: "STRING",
    4: "TENSOR",
    5: "GRAPH",
    6: "FLOATS",
    7: "INTS",
    8: "STRINGS",
    9: "TENSORS",
    10: "GRAPHS",
    11: "SPARSE_TENSOR",
    12: "SPARSE_TENSORS",
    13: "TYPE_PROTO",
    14: "TYPE_PROTOS",
}


class Attribute(NamedTuple):
    """What a signature says of one attribute."""

    onnx_type: str
    convert: typing.Callable  # (AttributeProto, context) -> the keyword argument
    choices: tuple | None
    required: bool


class Signature(NamedTuple):
    """An operator function's inputs and attributes."""

    required: int  # inputs without a default
    named: int  # inputs that have a parameter of their own
    variadic: bool  # whether any number more may follow
    attributes: dict
    n_outputs: bool


# annotation -> (attribute type, conversion)
CONVERSIONS = {
    int: ("INT", lambda a, context: a.i),
    float: ("FLOAT", lambda a, context: a.f),
    str: ("STRING", lambda a, context: a.s.decode()),
    Ints: ("INTS", lambda a, context: Ints(a.ints)),
    Floats: ("FLOATS", lambda a, context: Floats(a.floats)),
    Strs: ("STRINGS", lambda a, context: Strs(s.decode() for s in a.strings)),
    Dtype: ("INT", lambda a, context: tensors.numpy_dtype(a.i)),
    Tensor: ("TENSOR", lambda a, context: context.tensor(a.t)),
    Subgraph: ("GRAPH", lambda a, context: context.subgraph(a.g)),
}


@functools.cache
def signature(function):
    """The Signature of an operator function."""
    required, named, variadic, attributes, n_outputs = 0, 0, False, {}, False
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            variadic = True
        elif parameter.kind is parameter.KEYWORD_ONLY and name == "n_outputs":
            n_outputs = True
        elif parameter.kind is parameter.KEYWORD_ONLY:
            attributes[name] = _attribute(parameter)
        else:
            named += 1
            required += parameter.default is parameter.empty
    return Signature(required, named, variadic, attributes, n_outputs)


def _attribute(parameter):
    annotation, choices = parameter.annotation, None
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = (a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        annotation = type(choices[0])
    return Attribute(*CONVERSIONS[annotation], choices, parameter.default is parameter.empty)


@functools.lru_cache(1024)
def schema_since(op_type, opset):
    """The opset that gave one of ONNX's own operators the meaning that it has at `opset`, or None."""
    from onnx import defs

    try:
        return defs.get_schema(op_type, opset, "").since_version
    except defs.SchemaError:
        return None


@functools.lru_cache(1024)
def most_outputs(domain, op_type, opset):
    """How many outputs ONNX lets an operator have; None where the onnx package does not know it."""
    from onnx import defs

    try:
        return defs.get_schema(op_type, opset, domain).max_output
    except defs.SchemaError:
        return None


def find(domain, op_type, opset, where):
    """The function of an operator, or UnsupportedError."""
    function = ops.lookup(domain, op_type, opset)
    if function is None:
        known = ops.lookup(domain, op_type, 2**31) is not None
        raise UnsupportedError(
            f"{where}: operator {_qualified(domain, op_type)} is not supported{f' at opset {opset}' if known else ''}"
        )
    if domain == "" and opset < MODERN_OPSET and not _same_before(op_type, opset, function):
        raise UnsupportedError(f"{where}: operator {op_type} is supported from opset {MODERN_OPSET}, this is {opset}")
    return function


def _qualified(domain, op_type):
    return f"{domain}.{op_type}" if domain else op_type


def _same_before(op_type, opset, function):
    """Whether `function` is right before opset 7: the operator did not change there, or has a form of its own."""
    since = schema_since(op_type, opset)
    return since is not None and (
        since == schema_since(op_type, MODERN_OPSET)
        or op_type in EXTENDED_BY_7
        or function is not ops.lookup("", op_type, MODERN_OPSET)
    )


def bind(function, attributes, n_outputs, context, where):
    """AttributeProtos -> the keyword arguments of an operator function, all of them checked.

    `attributes`: name -> AttributeProto. `context` decodes tensors and graphs.
    """
    expected = signature(function)
    bound = {"n_outputs": n_outputs} if expected.n_outputs else {}
    for name, proto in attributes.items():
        if name not in expected.attributes:
            raise UnsupportedError(f"{where}: attribute {name!r} = {_shown(proto)} is not supported")
        bound[name] = _value(expected.attributes[name], proto, context, where)
    for name, attribute in expected.attributes.items():
        if attribute.required and name not in bound:
            raise ModelError(f"{where}: attribute {name!r} is missing")
    return bound


def _value(attribute, proto, context, where):
    name, onnx_type = proto.name, ATTRIBUTE_TYPES.get(proto.type, f"type {proto.type}")
    if onnx_type != attribute.onnx_type:
        raise ModelError(
            f"{where}: attribute {name!r} = {_shown(proto)} is {onnx_type}, expected {attribute.onnx_type}"
        )
    try:
        value = attribute.convert(proto, context)
    except UnicodeDecodeError:
        raise ModelError(f"{where}: attribute {name!r} = {_shown(proto)} is not UTF-8") from None
    except UnsupportedError as e:
        located = attribute.onnx_type in ("GRAPH", "TENSOR")
        raise e if located else UnsupportedError(f"{where}: attribute {name!r}: {e}") from None
    if attribute.choices is not None and value not in attribute.choices:
        raise UnsupportedError(
            f"{where}: attribute {name!r} = {value!r} is not supported, expected "
            f"{' or '.join(map(repr, attribute.choices))}"
        )
    return value


def _shown(proto):
    """An attribute's value for a message, short."""
    fields = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}
    if proto.type not in fields:
        return f"<{ATTRIBUTE_TYPES.get(proto.type, proto.type)}>"
    value = getattr(proto, fields[proto.type])
    text = repr(list(value) if proto.type >= 6 else value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_inputs(function, inputs, where):
    """The number of inputs, and that the required ones are there. `inputs`: names, "" for an absent one."""
    expected = signature(function)
    if not expected.variadic and len(inputs) > expected.named:
        raise ModelError(f"{where}: {len(inputs)} inputs, expected at most {expected.named}")
    if len(inputs) < expected.required or "" in inputs[: expected.required] or "" in inputs[expected.named :]:
        raise ModelError(
            f"{where}: inputs {list(inputs)}, but the first {expected.required} are required"
            f"{' and no repeated one may be left out' if expected.variadic else ''}"
        )
