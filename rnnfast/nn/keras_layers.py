"""Layers from layers of Keras 3: each option of a layer is kept, or refused by its name. Keras is not imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rnnfast import nn
from rnnfast.errors import InputTypeError, UnsupportedError
from rnnfast.nn.checks import as_weight, check_flag

INFERENCE = "; inference=True lets what matters in training alone be lost"

NO_EFFECT = frozenset(("name", "dtype", "seed", "unroll", "unit_forget_bias", "zero_output_for_mask", "synchronized"))
"""Options that change no result of a layer that has its weights and no mask; the dtype is checked by itself."""

IN_TRAINING = {"trainable": True, "dropout": 0.0, "recurrent_dropout": 0.0}
"""Options that matter in training alone -> the value that is as if there were none; others are those that end in
"_regularizer" and "_constraint", with None."""

# Keras's activation -> the layer, and what `from_keras` of a recurrent layer takes for it.
ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "elu": (nn.ELU, "elu"),
    "hard_sigmoid": (nn.Hardsigmoid, ("HardSigmoid", 1 / 6, 0.5)),
    "leaky_relu": (lambda: nn.LeakyReLU(0.2), ("LeakyRelu", 0.2, 0.0)),
    "linear": (lambda: nn.Dropout(0.0), "linear"),
    "relu": (nn.ReLU, "relu"),
    "sigmoid": (nn.Sigmoid, "sigmoid"),
    "softmax": (nn.Softmax, None),
    "softplus": (nn.Softplus, "softplus"),
    "softsign": (nn.Softsign, "softsign"),
    "tanh": (nn.Tanh, "tanh"),
}


def from_keras(model: Any, *, inference: bool = False) -> nn.Module:
    """Make layers, with their weights, of a keras.Sequential or of a single layer of Keras 3.

    The results are Keras's to rounding. Recurrent layers are batch_first, and convolutions have their channels where
    Keras has them.

    Args:
        model: A built keras.Sequential of Activation, BatchNormalization, Bidirectional, Conv1D, Dense, Dropout, ELU,
            Embedding, GRU, LayerNormalization, LeakyReLU, LSTM, ReLU, Sequential, SimpleRNN, Softmax and
            TimeDistributed (of a Dense or an activation); or one of these.
        inference: Whether options that matter in training alone may be lost: regularizers, constraints, dropout inside
            recurrent layers, trainable=False, and how BatchNormalization moves its variance.

    Returns:
        The layer; a Sequential has a layer for each of Keras's, of which one with an activation is a Sequential.

    Raises:
        InputTypeError: `model` is no layer of Keras 3, or its weights are not float32.
        UnsupportedError: A layer is of another class, is not built, or has an option that no layer has, such as a mask;
            the message names it.
    """
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(model, keras.layers.Layer) or int(keras.__version__.split(".")[0]) < 3:
        raise InputTypeError(f"model: got a {type(model).__name__}, expected a layer or Sequential of Keras 3")
    return _converted(model, check_flag(inference, "inference"))


def _converted(layer, inference):
    """Return the layer of a layer of Keras."""
    where, form = _where(layer), FORMS.get(type(layer).__name__)
    if not type(layer).__module__.startswith("keras."):
        form = None
    if type(layer).__name__ == "Masking":
        raise UnsupportedError(f"{where}: makes a mask, which no layer takes: give lengths= to the call")
    if form is None:
        raise UnsupportedError(f"{where}: has no layer, expected one of Keras's own: {', '.join(FORMS)}")
    if not layer.built:
        raise UnsupportedError(f"{where}: is not built, and so has no weights yet; call it first, or give an Input")
    return form.make(layer, _options(layer, form, inference), inference)


def _where(layer):
    """Return how messages name a layer."""
    return f"{layer.name} ({type(layer).__name__})"


def _options(layer, form, inference):
    """Return the options of a layer that are kept; refuse others that have an effect."""
    where, kept = _where(layer), {}
    if layer.compute_dtype != "float32":
        raise UnsupportedError(f"{where}: dtype is {layer.compute_dtype!r}, expected 'float32'")
    for option, value in layer.get_config().items():
        if option in form.kept:
            kept[option] = value
        elif option in NO_EFFECT or option.endswith("_initializer"):
            continue
        elif option in IN_TRAINING or option.endswith(("_regularizer", "_constraint")):
            if value != IN_TRAINING.get(option) and not inference:
                raise UnsupportedError(f"{where}: {option} is {_shown(value)}, which no layer has{INFERENCE}")
        elif option not in form.fixed or value not in form.fixed[option]:
            raise UnsupportedError(f"{where}: {option} is {_shown(value)}, which no layer has")
    return kept


def _shown(value):
    """Return a value of a configuration as text; one of an object as the name of its class."""
    return value["class_name"] if isinstance(value, dict) and "class_name" in value else repr(value)


def _activation(layer, option, inference, recurrent=False):
    """Return the layer of an activation, or what a recurrent layer has for it."""
    function = getattr(layer, option)
    name = getattr(function, "__name__", type(function).__name__)
    own = str(getattr(function, "__module__", "")).startswith("keras.")
    if not recurrent and own and name in FORMS:  # a layer as an activation
        return _converted(function, inference)
    found = ACTIVATIONS.get(name, (None, None))[recurrent] if own else None
    if found is None:
        known = [key for key, pair in ACTIVATIONS.items() if pair[recurrent] is not None]
        raise UnsupportedError(f"{_where(layer)}: {option} is {name}, expected one of Keras's {', '.join(known)}")
    return found if recurrent else found()


def _loaded(layer, weights):
    """Return a layer with these weights by name, float32 arrays; None is left out."""
    layer.load_state_dict({name: array for name, array in weights.items() if array is not None})
    return layer


def _with_activation(made, layer, inference):
    """Return a layer of ours, followed by the activation of Keras's if that has one."""
    if getattr(layer.activation, "__name__", "") == "linear":
        return made
    return nn.Sequential(made, _activation(layer, "activation", inference))


def _arrays(layer):
    """Return the weights of a layer as float32 arrays."""
    return [as_weight(a, f"{_where(layer)}: weight {i}") for i, a in enumerate(layer.get_weights())]


def _sequential(model, options, inference):
    return nn.Sequential(*(_converted(layer, inference) for layer in model.layers))


def _dense(layer, options, inference):
    kernel, *bias = _arrays(layer)
    made = nn.Linear(*kernel.shape, bias=bool(bias))
    return _with_activation(_loaded(made, {"weight": kernel.T, "bias": next(iter(bias), None)}), layer, inference)


def _conv1d(layer, options, inference):
    if options["padding"] == "same" and options["strides"] != (1,):
        raise UnsupportedError(f"{_where(layer)}: padding is 'same' with strides {options['strides']}, expected (1,)")
    kernel, *bias = _arrays(layer)
    size, width, filters = kernel.shape
    made = nn.Conv1d(
        width * options["groups"],
        filters,
        size,
        options["strides"][0],
        options["padding"],
        options["dilation_rate"][0],
        options["groups"],
        bool(bias),
        channels_last=options["data_format"] == "channels_last",
    )
    weights = {"weight": kernel.transpose(2, 1, 0), "bias": next(iter(bias), None)}
    return _with_activation(_loaded(made, weights), layer, inference)


def _embedding(layer, options, inference):
    (table,) = _arrays(layer)
    return _loaded(nn.Embedding(*table.shape), {"weight": table})


def _layer_norm(layer, options, inference):
    weight, bias = _arrays(layer)
    return _loaded(nn.LayerNorm(len(weight), options["epsilon"]), {"weight": weight, "bias": bias})


def _batch_norm(layer, options, inference):
    if not inference:
        raise UnsupportedError(
            f"{_where(layer)}: moves its variance by the biased one of a batch, which no layer does{INFERENCE}"
        )
    arrays = dict(zip(("weight", "bias", "running_mean", "running_var"), _arrays(layer), strict=True))
    size = len(arrays["weight"])
    return _loaded(nn.BatchNorm1d(size, options["epsilon"], 1 - options["momentum"], channels_last=True), arrays)


def _relu(layer, options, inference):
    slope = float(options["negative_slope"])
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


def _time_distributed(wrapper, options, inference):
    inner = wrapper.layer
    if type(inner).__name__ not in ("Dense", "Activation", "ELU", "LeakyReLU", "ReLU"):
        raise UnsupportedError(f"{_where(wrapper)}: layer is {_where(inner)}, expected a Dense or an activation")
    return _converted(inner, inference)


def _recurrent(layer, options, inference):
    """Return the layer of an LSTM, GRU or SimpleRNN, in one direction."""
    backwards = options["go_backwards"]
    if backwards and options["return_sequences"]:
        raise UnsupportedError(
            f"{_where(layer)}: go_backwards is True with return_sequences=True: the outputs stand in reverse order, "
            "which no layer gives"
        )
    return _stack(layer, options, inference, layer.get_weights(), reverse=backwards)


def _bidirectional(wrapper, options, inference):
    forward, backward = wrapper.forward_layer, wrapper.backward_layer
    merge = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "average"}.get(options["merge_mode"])
    form = FORMS.get(type(forward).__name__)
    if merge is None:
        raise UnsupportedError(f"{_where(wrapper)}: merge_mode is {options['merge_mode']!r}, which no layer has")
    if form is None or form.make is not _recurrent or type(backward) is not type(forward):
        raise UnsupportedError(f"{_where(wrapper)}: has no layer, expected an LSTM, GRU or SimpleRNN in it")
    both = [_options(part, form, inference) for part in (forward, backward)]
    for name, value in both[0].items():
        other = both[1][name]
        if name == "go_backwards" and (value, other) != (False, True) or name != "go_backwards" and value != other:
            raise UnsupportedError(f"{_where(wrapper)}: {name} is {value!r} and, backwards, {other!r}")
    return _stack(forward, both[0], inference, wrapper.get_weights(), merge=merge)


def _stack(layer, options, inference, weights, merge="concat", **more):
    """Return the layer of a recurrent one and its weights, which are those of two directions for a Bidirectional."""
    kind = type(layer).__name__
    outer = _activation(layer, "activation", inference, True)
    gates = None if kind == "SimpleRNN" else _activation(layer, "recurrent_activation", inference, True)
    activations = {"SimpleRNN": (outer,), "GRU": (gates, outer), "LSTM": (gates, outer, outer)}[kind]
    if kind == "GRU":
        more["linear_before_reset"] = bool(options["reset_after"])
    return {"SimpleRNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}[kind]._from_keras(
        weights,
        bool(options.get("reset_after")),
        activations,
        merge,
        batch_first=True,
        return_sequences=bool(options["return_sequences"]),
        **more,
    )


class Form(NamedTuple):
    """How a class of Keras becomes a layer."""

    make: Callable[[Any, dict[str, Any], bool], nn.Module]
    """Function of the layer, its options that are kept, and `inference`."""
    kept: tuple[str, ...] = ()
    """Options that the function takes, or finds at the layer."""
    fixed: Mapping[str, tuple[Any, ...]] = {}
    """Other options, with the values that are as if they were not there."""


_RECURRENT = (
    "units",
    "activation",
    "recurrent_activation",
    "use_bias",
    "return_sequences",
    "return_state",
    "go_backwards",
    "reset_after",
)
_NOT_QUANTIZED = {"quantization_config": (None,)}

FORMS = {
    "Activation": Form(lambda layer, options, inference: _activation(layer, "activation", inference), ("activation",)),
    "BatchNormalization": Form(
        _batch_norm,
        ("epsilon", "momentum"),
        {
            "axis": (-1,),
            "center": (True,),
            "scale": (True,),
            "renorm": (False,),
            "renorm_clipping": (None,),
            "renorm_momentum": (0.99,),
        },
    ),
    "Bidirectional": Form(_bidirectional, ("merge_mode", "layer", "backward_layer")),
    "Conv1D": Form(
        _conv1d,
        (
            "filters",
            "kernel_size",
            "strides",
            "padding",
            "data_format",
            "dilation_rate",
            "groups",
            "activation",
            "use_bias",
        ),
        _NOT_QUANTIZED,
    ),
    "Dense": Form(_dense, ("units", "activation", "use_bias"), _NOT_QUANTIZED),
    "Dropout": Form(lambda layer, options, inference: nn.Dropout(options["rate"]), ("rate",), {"noise_shape": (None,)}),
    "ELU": Form(lambda layer, options, inference: nn.ELU(float(options["alpha"])), ("alpha",)),
    "Embedding": Form(_embedding, ("input_dim", "output_dim"), {"mask_zero": (False,)} | _NOT_QUANTIZED),
    "GRU": Form(_recurrent, _RECURRENT, {"stateful": (False,)}),
    "LSTM": Form(_recurrent, _RECURRENT, {"stateful": (False,)}),
    "LayerNormalization": Form(
        _layer_norm, ("epsilon",), {"axis": (-1, [-1]), "center": (True,), "scale": (True,), "rms_scaling": (False,)}
    ),
    "LeakyReLU": Form(
        lambda layer, options, inference: nn.LeakyReLU(float(options["negative_slope"])), ("negative_slope",)
    ),
    "ReLU": Form(_relu, ("negative_slope",), {"max_value": (None,), "threshold": (0.0,)}),
    "Sequential": Form(_sequential, ("layers", "build_input_shape")),
    "SimpleRNN": Form(_recurrent, _RECURRENT, {"stateful": (False,)}),
    "Softmax": Form(lambda layer, options, inference: nn.Softmax(options["axis"]), ("axis",)),
    "TimeDistributed": Form(_time_distributed, ("layer",)),
}
"""Class of Keras -> how it becomes a layer."""
