"""Finds the functions of operators and checks a node's attributes against their Python signatures, once, at load."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from rnnfast.errors import InputTypeError, ModelError, UnsupportedError
from rnnfast.onnx import ops, tensors
from rnnfast.onnx.ops.types import DeclaredType, Dtype, Floats, Ints, Strs, Subgraph, Tensor

# From this opset on, broadcasting and inference modes are those of today; `_same_before` treats older ones.
MODERN_OPSET = 7
# Opset 7 only gave these a new attribute, whose default is the older behaviour.
EXTENDED_BY_7 = {"AveragePool"}

# AttributeProto.AttributeType -> its name
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
    """An attribute, as a keyword-only parameter of an operator function declares it."""

    onnx_type: str
    convert: Callable[[Any, Any], Any]  # (AttributeProto, context) -> the keyword argument
    choices: tuple[Any, ...] | None  # the values that are supported, None for all
    required: bool


class OperatorSignature(NamedTuple):
    """The inputs and attributes that an operator function takes."""

    required: int  # inputs without a default
    named: int  # inputs that have a parameter of their own
    variadic: bool  # whether any number of inputs may follow these
    attributes: dict[str, Attribute]
    n_outputs: bool  # whether it takes the number of outputs


# Annotation of a parameter -> (type of the attribute, its conversion)
CONVERSIONS: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    int: ("INT", lambda a, context: a.i),
    float: ("FLOAT", lambda a, context: a.f),
    str: ("STRING", lambda a, context: a.s.decode()),
    Ints: ("INTS", lambda a, context: Ints(a.ints)),
    Floats: ("FLOATS", lambda a, context: Floats(a.floats)),
    Strs: ("STRINGS", lambda a, context: Strs(s.decode() for s in a.strings)),
    Dtype: ("INT", lambda a, context: tensors.numpy_dtype(a.i)),
    Tensor: ("TENSOR", lambda a, context: context.tensor(a.t)),
    DeclaredType: ("TYPE_PROTO", lambda a, context: a.tp.SerializeToString()),
    Subgraph: ("GRAPH", lambda a, context: context.subgraph(a.g)),
}


@functools.cache
def operator_signature(function: Callable[..., Any]) -> OperatorSignature:
    """Read the signature of an operator function."""
    required, named, variadic, n_outputs = 0, 0, False, False
    attributes: dict[str, Attribute] = {}
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
    return OperatorSignature(required, named, variadic, attributes, n_outputs)


def _attribute(parameter: inspect.Parameter) -> Attribute:
    """The attribute that a keyword-only parameter declares by its annotation and default."""
    annotation, choices = parameter.annotation, None
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = (a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        annotation = type(choices[0])
    onnx_type, convert = CONVERSIONS[annotation]
    if annotation is Dtype and parameter.default is None:
        convert = _optional_dtype
    return Attribute(onnx_type, convert, choices, parameter.default is parameter.empty)


def _optional_dtype(proto: Any, context: Any) -> np.dtype | None:
    """The dtype of an attribute that may be absent, as which a file may also give number 0, its default in ONNX."""
    return tensors.numpy_dtype(proto.i) if proto.i else None


@functools.lru_cache(1024)
def schema_since(op_type: str, opset: int) -> int | None:
    """The opset that gave an operator of ONNX's own domain the definition it has at `opset`, or None if it has none."""
    from onnx import defs

    try:
        return defs.get_schema(op_type, opset, "").since_version
    except defs.SchemaError:
        return None


@functools.lru_cache(1024)
def most_outputs(domain: str, op_type: str, opset: int) -> int | None:
    """The largest number of outputs that ONNX lets an operator have; None if the onnx package does not know it."""
    from onnx import defs

    try:
        return defs.get_schema(op_type, opset, domain).max_output
    except defs.SchemaError:
        return None


@functools.lru_cache(1024)
def inputs_of_one_type(domain: str, op_type: str, opset: int, count: int) -> tuple[tuple[int, ...], ...]:
    """The groups of indices, among the first `count` inputs, of those that ONNX says have one type, such as T."""
    from onnx import defs

    try:
        formal = defs.get_schema(op_type, opset, domain).inputs
    except defs.SchemaError:
        return ()
    groups: dict[str, list[int]] = {}
    for i in range(count if formal else 0):
        parameter = formal[min(i, len(formal) - 1)]
        if parameter.is_homogeneous:
            groups.setdefault(parameter.type_str, []).append(i)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


@functools.lru_cache(1024)
def result_types(domain: str, op_type: str, opset: int, inputs: int, outputs: int) -> tuple[Any, ...]:
    """For each result of an operator the dtype that ONNX says it has, or the indices of the inputs whose type it has.

    An empty tuple of indices is a type that does not follow from those of the inputs.
    """
    from onnx import defs

    try:
        schema = defs.get_schema(op_type, opset, domain)
    except defs.SchemaError:
        return ()
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}

    def formal(parameters: Sequence[Any], i: int) -> Any:
        return parameters[min(i, len(parameters) - 1)]

    found: list[Any] = []
    for i in range(outputs if schema.outputs else 0):
        result = formal(schema.outputs, i)
        types = allowed.get(result.type_str, [result.type_str])
        if not result.is_homogeneous:
            found.append(())
        elif len(types) == 1:
            found.append(tensors.dtype_of_type(types[0]) or ())
        else:
            same = [j for j in range(inputs) if formal(schema.inputs, j).type_str == result.type_str]
            found.append(tuple(j for j in same if formal(schema.inputs, j).is_homogeneous))
    return tuple(found)


def check_types(groups: Sequence[Sequence[int]], inputs: Sequence[Any]) -> None:
    """Raise InputTypeError if inputs of a group are arrays of different types."""
    for group in groups:
        types = [inputs[i].dtype for i in group if isinstance(inputs[i], np.ndarray)]
        if any(dtype != types[0] for dtype in types):
            shown = " and ".join(f"{i} ({inputs[i].dtype})" for i in group if isinstance(inputs[i], np.ndarray))
            raise InputTypeError(f"inputs {shown} are to have one type")


def find(domain: str, op_type: str, opset: int, where: str) -> Callable[..., Any]:
    """The function of an operator; raises UnsupportedError if there is none."""
    function = ops.lookup(domain, op_type, opset)
    if function is None:
        known = ops.lookup(domain, op_type, 2**31) is not None
        raise UnsupportedError(
            f"{where}: operator {_qualified(domain, op_type)} is not supported{f' at opset {opset}' if known else ''}"
        )
    if domain == "" and opset < MODERN_OPSET and not _same_before(op_type, opset, function):
        raise UnsupportedError(f"{where}: operator {op_type} is supported from opset {MODERN_OPSET}, this is {opset}")
    return function


def _qualified(domain: str, op_type: str) -> str:
    return f"{domain}.{op_type}" if domain else op_type


def _same_before(op_type: str, opset: int, function: Callable[..., Any]) -> bool:
    """Return whether `function` is right before opset 7: it did not change the operator, or older ones have their own
    function."""
    since = schema_since(op_type, opset)
    return since is not None and (
        since == schema_since(op_type, MODERN_OPSET)
        or op_type in EXTENDED_BY_7
        or function is not ops.lookup("", op_type, MODERN_OPSET)
    )


def bind(
    function: Callable[..., Any], attributes: Mapping[str, Any], n_outputs: int, context: Any, where: str
) -> dict[str, Any]:
    """Check a node's attributes and convert them to the keyword arguments of its operator function.

    `attributes` maps names to AttributeProtos; `context` converts them, and decodes those that are tensors or graphs.
    """
    expected = operator_signature(function)
    bound: dict[str, Any] = {"n_outputs": n_outputs} if expected.n_outputs else {}
    for name, proto in attributes.items():
        if name not in expected.attributes:
            raise UnsupportedError(f"{where}: attribute {name!r} = {_shown(proto)} is not supported")
        bound[name] = _value(expected.attributes[name], name, proto, context, where)
    for name, attribute in expected.attributes.items():
        if attribute.required and name not in bound:
            raise ModelError(f"{where}: attribute {name!r} is missing")
    return bound


def _value(attribute: Attribute, name: str, proto: Any, context: Any, where: str) -> Any:
    """The keyword argument for one AttributeProto, checked against its declaration."""
    onnx_type = ATTRIBUTE_TYPES.get(proto.type, f"type {proto.type}")
    if onnx_type != attribute.onnx_type:
        raise ModelError(
            f"{where}: attribute {name!r} = {_shown(proto)} is {onnx_type}, expected {attribute.onnx_type}"
        )
    try:
        value = context.converted(attribute.convert, proto)
    except UnicodeDecodeError:
        raise ModelError(f"{where}: attribute {name!r} = {_shown(proto)} is not UTF-8") from None
    except UnsupportedError as e:
        located = attribute.onnx_type in ("GRAPH", "TENSOR")  # the context's errors say where they happened
        raise e if located else UnsupportedError(f"{where}: attribute {name!r}: {e}") from None
    if attribute.choices is not None and value not in attribute.choices:
        raise UnsupportedError(
            f"{where}: attribute {name!r} = {value!r} is not supported, expected "
            f"{' or '.join(map(repr, attribute.choices))}"
        )
    return value


def _shown(proto: Any) -> str:
    """An attribute's value as text for a message, cut to 80 characters."""
    fields = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}
    if proto.type not in fields:
        return f"<{ATTRIBUTE_TYPES.get(proto.type, proto.type)}>"
    value = getattr(proto, fields[proto.type])
    text = repr(list(value) if proto.type >= 6 else value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_inputs(function: Callable[..., Any], inputs: Sequence[str], where: str) -> None:
    """Raise ModelError if there are too many inputs, or a required one is absent, whose name is "" or left out."""
    expected = operator_signature(function)
    if not expected.variadic and len(inputs) > expected.named:
        raise ModelError(f"{where}: {len(inputs)} inputs, expected at most {expected.named}")
    if len(inputs) < expected.required or "" in inputs[: expected.required] or "" in inputs[expected.named :]:
        raise ModelError(
            f"{where}: inputs {list(inputs)}, but the first {expected.required} are required"
            f"{' and no repeated one may be left out' if expected.variadic else ''}"
        )
