"""Networks as JSON: the class and the arguments of each layer, of which a network with fresh weights is made."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast import nn
from rnnfast.errors import Error, ModelError, UnsupportedError, raise_if_from_handler
from rnnfast.native.weight_types import ACTIVATION_BITS, WEIGHT_TYPES, weight_type_of

if TYPE_CHECKING:
    from rnnfast.nn.module import Module

KEY, VERSION = "rnnfast.nn", 1
"""The entry of a file's metadata that holds a description, and the version of descriptions."""

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""The exceptions that reading JSON of a stranger raises."""


def layer_classes() -> dict[str, type[Module]]:
    """Return the classes of rnnfast's layers by name."""
    public = {name: getattr(nn, name) for name in nn.__all__}
    return {name: value for name, value in public.items() if isinstance(value, type) and issubclass(value, nn.Module)}


def describe(net: Module, **facts: Any) -> str:
    """Return the description of a network, and further facts beside it, as JSON.

    Raises:
        UnsupportedError: A layer is none of rnnfast's own.
    """
    return json.dumps({"version": VERSION, "network": _described(net), **facts}, default=_as_python)


def network(text: str, where: str) -> tuple[Module, dict[str, Any]]:
    """Return the network that a description describes, without weights yet, and all that is in the description.

    Raises:
        ModelError: The text is no description of a network; the message begins with `where`.
    """
    try:
        description = json.loads(text)
        if description["version"] != VERSION:
            raise ValueError(f"version {description['version']}, expected {VERSION}")
        return _made(description["network"]), description
    except (Error, *MALFORMED) as error:
        raise_if_from_handler(error)
        raise ModelError(f"{where}: describes no network of rnnfast ({type(error).__name__}: {error})") from error


def _described(layer):
    """Return the class and the arguments of a layer as JSON has them."""
    name = type(layer).__name__
    if layer_classes().get(name) is not type(layer) or type(layer) is nn.Module:
        raise UnsupportedError(f"{layer!r} is none of rnnfast's own layers, so that no file can say what it is")
    if isinstance(layer, nn.Sequential):
        return {"class": name, "layers": [_described(member) for member in layer.layers]}
    given = {}
    for argument, parameter in inspect.signature(type(layer)).parameters.items():
        value = getattr(layer, argument, parameter.default)
        if argument != "rng" and (parameter.default is parameter.empty or value != parameter.default):
            given[argument] = value
    return {"class": name, "arguments": given} | _weights(layer)


def _made(description):
    """Make a layer of its description."""
    kind = layer_classes()[description["class"]]
    if kind is nn.Sequential:
        return kind(*map(_made, description["layers"]))
    layer = kind(**{name: _tuples(value) for name, value in description["arguments"].items()})
    weight_type = weight_type_of(description.get("weights"), description.get("activations", ACTIVATION_BITS))
    if weight_type is not None:
        layer.hold_weights_as(weight_type)
    return layer


def _weights(layer):
    """Return what the description of a quantised layer has beside that of another one."""
    if layer.weight_type is None:
        return {}
    row = WEIGHT_TYPES[layer.weight_type]
    return {"weights": row.weights} | ({"activations": row.activation_bits} if row.integers else {})


def _tuples(value):
    """Return JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _as_python(value):
    """Return a NumPy number as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} has no form in JSON")
