"""Layers from modules of torch: each option of a module is kept, or refused by its name. Torch is not imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rnnfast import nn
from rnnfast.errors import InputTypeError, UnsupportedError
from rnnfast.nn.checks import check_flag


def from_torch(module: Any, *, inference: bool = False) -> nn.Module:
    """Make layers, with their weights, of a torch module: a torch.nn.Sequential, or a single layer.

    The results are torch's to rounding: of a call those of a module in `eval()` mode, of `forward(training=True)` and
    `fit` those in training. A recurrent layer in a Sequential passes on its output, without the state.

    Args:
        module: A torch.nn.Sequential of BatchNorm1d, Conv1d, Dropout, ELU, Embedding, GRU, Hardsigmoid, Identity,
            LayerNorm, LeakyReLU, Linear, LSTM, ReLU, RNN, Sequential, Sigmoid, Softmax, Softplus, Softsign and Tanh;
            or one of these, or of GRUCell, LSTMCell and RNNCell.
        inference: Whether options that matter in training alone may be lost, such as weights that are frozen
            (requires_grad=False).

    Returns:
        The layer; a Sequential has its layers at the same positions.

    Raises:
        InputTypeError: `module` is no torch module, or its weights are not float32.
        UnsupportedError: A module is of another class, or has an option or hook that no layer has; the message names
            it. Modules that share a weight are refused too, but for one that is used several times.
    """
    if not hasattr(module, "named_children") or not hasattr(module, "_forward_hooks"):
        raise InputTypeError(f"module: got a {type(module).__name__}, expected a torch.nn.Module")
    made: dict[int, nn.Module] = {}
    weights: dict[int, str] = {}
    return _converted(module, "", check_flag(inference, "inference"), made, weights)


def _converted(module, path, inference, made, weights):
    """Return the layer of a module, which `path` leads to.

    `made` has the layers so far by the ids of modules, so that a module that is used twice is one layer; `weights` has
    who the weights so far belong to, by their ids.
    """
    if id(module) in made:
        return made[id(module)]
    where = f"{path or 'module'} ({type(module).__name__})"
    known = type(module).__module__.startswith("torch.nn.modules.")
    name = type(module).__name__ if known else ""
    if name != "Sequential" and name not in FORMS:
        raise UnsupportedError(f"{where}: has no layer, expected torch's own Sequential, {', '.join(FORMS)}")
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        if getattr(module, hooks, None):
            raise UnsupportedError(f"{where}: has {hooks[1:].replace('_', ' ')}, which no layer has")
    for key, weight in module._parameters.items():
        owner = weights.setdefault(id(weight), f"{where}: {key}") if weight is not None else None
        if owner not in (None, f"{where}: {key}"):
            raise UnsupportedError(f"{where}: {key} is the same weight as that of {owner}; no layers share weights")
        if weight is not None and not weight.requires_grad and not inference:
            raise UnsupportedError(f"{where}: requires_grad of {key} is False{INFERENCE}")
    if name == "Sequential":
        # _modules, as named_children gives a module that is used twice once
        parts = {key: member for key, member in module._modules.items() if member is not None}
        made[id(module)] = nn.Sequential(
            *(_converted(m, f"{path}.{key}" if path else key, inference, made, weights) for key, m in parts.items())
        )
    else:
        made[id(module)] = _leaf(module, FORMS[name], where, inference)
    return made[id(module)]


def _leaf(module, form, where, inference):
    """Return the layer of a module that is no Sequential."""
    given = {}
    for option, value in vars(module).items():
        if option.startswith("_") or option in ("training", "inplace"):
            continue  # layers have an argument `training`, and never write to their inputs
        if option in form.kept:
            try:
                given[option] = form.kept[option](value)
            except (TypeError, ValueError):
                raise UnsupportedError(f"{where}: {option} is {value!r}, which no layer has") from None
        elif option in form.training and (inference or value == form.training[option]):
            continue
        elif option not in form.fixed or value not in form.fixed[option]:
            more = INFERENCE if option in form.training else ""
            raise UnsupportedError(f"{where}: {option} is {value!r}, which no layer has{more}")
    if "bias" not in given and "bias" in module._parameters and form.has_bias:
        given["bias"] = module.bias is not None
    elif "bias" in module._parameters and module.bias is None:
        raise UnsupportedError(f"{where}: bias is False, which no layer has")
    layer = form.layer(**given)
    layer.load_state_dict({name: tensor.detach().cpu() for name, tensor in module.state_dict().items()})
    return layer


INFERENCE = "; inference=True lets what matters in training alone be lost"


class Form(NamedTuple):
    """How a class of torch becomes a layer."""

    layer: Callable[..., nn.Module]
    kept: Mapping[str, Callable[[Any], Any]] = {}
    """Options that are arguments of the layer too, with the function of their values."""
    fixed: Mapping[str, tuple[Any, ...]] = {}
    """Other options, with the values that are as if they were not there."""
    training: Mapping[str, Any] = {}
    """Other options that matter in training alone, with this value."""
    has_bias: bool = False
    """Whether `bias` is an argument of the layer, and of the module a weight or None."""


def _same(*names):
    """Return options that are kept as they are."""
    return dict.fromkeys(names, lambda value: value)


def _single(value):
    """Return the only member of a tuple."""
    (member,) = value
    return member


def _padding(value):
    """Return the padding of a Conv1d."""
    return value if isinstance(value, str) else _single(value)


def _given(value):
    """Return a value that is not None."""
    if value is None:
        raise ValueError("None")
    return value


def _identity():
    """Return a layer that changes nothing."""
    return nn.Dropout(0.0)


_SIZES = ("input_size", "hidden_size", "bias")
_STACK = (*_SIZES, "num_layers", "batch_first", "dropout", "bidirectional")

FORMS = {
    "BatchNorm1d": Form(
        nn.BatchNorm1d,
        _same("num_features", "eps") | {"momentum": _given},
        {"affine": (True,), "track_running_stats": (True,)},
    ),
    "Conv1d": Form(
        nn.Conv1d,
        _same("in_channels", "out_channels", "groups")
        | {"kernel_size": _single, "stride": _single, "dilation": _single, "padding": _padding},
        {"transposed": (False,), "output_padding": ((0,),), "padding_mode": ("zeros",)},
        has_bias=True,
    ),
    "Dropout": Form(nn.Dropout, _same("p")),
    "ELU": Form(nn.ELU, _same("alpha")),
    "Embedding": Form(
        nn.Embedding,
        _same("num_embeddings", "embedding_dim", "padding_idx"),
        {"max_norm": (None,), "norm_type": (2.0,)},
        {"scale_grad_by_freq": False, "sparse": False},
    ),
    "GRU": Form(nn.GRU, _same(*_STACK), {"mode": ("GRU",), "proj_size": (0,)}),
    "GRUCell": Form(nn.GRUCell, _same(*_SIZES)),
    "Hardsigmoid": Form(nn.Hardsigmoid),
    "Identity": Form(_identity),
    "LSTM": Form(nn.LSTM, _same(*_STACK, "proj_size"), {"mode": ("LSTM",)}),
    "LSTMCell": Form(nn.LSTMCell, _same(*_SIZES)),
    "LayerNorm": Form(nn.LayerNorm, _same("eps") | {"normalized_shape": _single}, {"elementwise_affine": (True,)}),
    "LeakyReLU": Form(nn.LeakyReLU, _same("negative_slope")),
    "Linear": Form(nn.Linear, _same("in_features", "out_features"), has_bias=True),
    "RNN": Form(nn.RNN, _same(*_STACK, "nonlinearity"), {"mode": ("RNN_TANH", "RNN_RELU"), "proj_size": (0,)}),
    "RNNCell": Form(nn.RNNCell, _same(*_SIZES, "nonlinearity")),
    "ReLU": Form(nn.ReLU),
    "Sigmoid": Form(nn.Sigmoid),
    "Softmax": Form(nn.Softmax, {"dim": _given}),
    "Softplus": Form(nn.Softplus, {}, {"beta": (1,), "threshold": (20,)}),
    "Softsign": Form(nn.Softsign),
    "Tanh": Form(nn.Tanh),
}
"""Class of torch -> how it becomes a layer."""
