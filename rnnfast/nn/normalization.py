"""Normalization layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import InputError
from rnnfast.nn.checks import as_input, check_flag, check_number, check_size, check_weights
from rnnfast.nn.module import Module, Sizes, SummaryRow

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.types import FloatArray, Seed, Shape, SummaryShape


class LayerNorm(Module):
    """Layer normalization over the last axis: y = (x - mean) / sqrt(variance + eps) * weight + bias.

    Mean and (biased) variance are those of the last axis. Arguments, formula and state dict are those of
    torch.nn.LayerNorm: weight [normalized_shape], initially ones, and bias [normalized_shape], initially zeros.

    Args:
        normalized_shape: The size of the last axis.
        eps: The number that is added to the variance, from 0 to 1.

    Raises:
        InputError: An argument is out of range.
        InputTypeError: An argument has the wrong type.
        LimitError: The weights are too large.
    """

    takes_floats = True

    def __init__(self, normalized_shape: int, eps: float = 1e-5) -> None:
        self.normalized_shape = check_size(normalized_shape, "normalized_shape")
        self.eps = check_number(eps, "eps", 0.0, 1.0)
        check_weights(self, self.shapes().values())

    def shapes(self) -> dict[str, Shape]:
        return {"weight": (self.normalized_shape,), "bias": (self.normalized_shape,)}

    def sizes(self) -> Sizes:
        return "last", self.normalized_shape, self.normalized_shape

    def _draw(self, rng):
        return {
            "weight": np.ones(self.normalized_shape, np.float32),
            "bias": np.zeros(self.normalized_shape, np.float32),
        }

    def _pack(self, parameters):
        return parameters["weight"], parameters["bias"]

    def __call__(self, x: ArrayLike) -> FloatArray:
        """Normalize the last axis.

        Args:
            x: float32 [..., normalized_shape].

        Returns:
            float32 of x's shape.

        Raises:
            InputError: The last axis has another size.
            InputTypeError: x is not float32.
        """
        return self._forward(x, None)[0]

    def _forward(self, x, rng):
        x = as_input(x, "x")
        if x.ndim == 0 or x.shape[-1] != self.normalized_shape:
            raise InputError(f"x: shape is {list(x.shape)}, expected [..., {self.normalized_shape}] (normalized_shape)")
        weight, bias = self._packed
        with np.errstate(all="ignore"):
            centred = x - _mean(x)
            scale = 1 / np.sqrt(_mean(centred * centred) + np.float32(self.eps))
            normal = centred * scale
            return normal * weight + bias, normal, scale, weight

    def _backward(self, dy, normal, scale, weight):
        """Compute dx = (d - mean(d) - n * mean(d * n)) * scale, where d = dy * weight and n = (x - mean) * scale."""
        axes = tuple(range(dy.ndim - 1))
        d = dy * weight
        dx = (d - _mean(d) - normal * _mean(d * normal)) * scale
        return dx, {"weight": (dy * normal).sum(axes), "bias": dy.sum(axes)}

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        size = self.normalized_shape
        return [SummaryRow(repr(self), shape or ("...", size), 2 * size, 0, 8 * size)]


class BatchNorm1d(Module):
    """Batch normalization of channels: y = (x - mean) / sqrt(variance + eps) * weight + bias, as torch.nn.BatchNorm1d.

    A call uses running_mean and running_var. In training, mean and (biased) variance are those of the batch, over all
    axes but that of the channels, and `fit` moves the running ones after each step:

        running' = (1 - momentum) * running + momentum * that of the batch, with the unbiased variance

    `backward` gives what `fit` subtracts from running_mean and running_var where it gives the gradients of the others.

    State dict: weight [num_features], initially ones, bias, zeros, running_mean, zeros, and running_var, ones. torch's
    num_batches_tracked is left out, as it has no effect on them.

    Args:
        num_features: The number of channels C.
        eps: The number that is added to the variance, from 0 to 1.
        momentum: The weight of a batch in the running mean and variance, from 0 to 1.
        channels_last: Whether x is [N, L, C] rather than [N, C, L], if it has three axes. Streams need it.

    Raises:
        InputError: An argument is out of range.
        InputTypeError: An argument has the wrong type.
        LimitError: The weights are too large.
    """

    takes_floats = True
    buffers = ("running_mean", "running_var")

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, channels_last: bool = False
    ) -> None:
        self.num_features = check_size(num_features, "num_features")
        self.eps = check_number(eps, "eps", 0.0, 1.0)
        self.momentum = check_number(momentum, "momentum", 0.0, 1.0)
        self.channels_last = check_flag(channels_last, "channels_last")
        check_weights(self, self.shapes().values())

    @property
    def is_stepwise(self) -> bool:
        return self.channels_last

    def _check_lengths_taken(self, x, lengths):
        if np.ndim(x) == 3:  # else there is no time axis
            super()._check_lengths_taken(x, lengths)

    def shapes(self) -> dict[str, Shape]:
        return dict.fromkeys(("weight", "bias", *self.buffers), (self.num_features,))

    def sizes(self) -> Sizes:
        return "last" if self.channels_last else "channels", self.num_features, self.num_features

    def _draw(self, rng):
        ones, zeros = (np.full(self.num_features, value, np.float32) for value in (1, 0))
        return {"weight": ones, "bias": zeros, "running_mean": zeros.copy(), "running_var": ones.copy()}

    def _pack(self, parameters):
        with np.errstate(all="ignore"):
            scale = parameters["weight"] / np.sqrt(parameters["running_var"] + np.float32(self.eps))
            return scale, parameters["bias"] - parameters["running_mean"] * scale

    def __call__(self, x: ArrayLike) -> FloatArray:
        """Normalize each channel by its running mean and variance.

        Args:
            x: float32 [N, C] or [N, C, L]; [N, L, C] with channels_last.

        Returns:
            float32 of x's shape.

        Raises:
            InputError: The shape does not fit.
            InputTypeError: x is not float32.
        """
        x, _ = self._validated(x)
        with np.errstate(all="ignore"):
            return x * self._as_channels(self._packed[0], x) + self._as_channels(self._packed[1], x)

    def _validated(self, x):
        """Return x as a float32 array, and its axes without that of the channels."""
        x = as_input(x, "x")
        axis = x.ndim - 1 if self.channels_last else 1
        if x.ndim not in (2, 3) or x.shape[axis] != self.num_features:
            three = f"N, L, {self.num_features}" if self.channels_last else f"N, {self.num_features}, L"
            raise InputError(f"x: shape is {list(x.shape)}, expected [N, {self.num_features}] or [{three}]")
        return x, tuple(i for i in range(x.ndim) if i != axis)

    def _as_channels(self, values, x):
        """Return values of the channels with the axes of x."""
        return values[:, None] if x.ndim == 3 and not self.channels_last else values

    def forward(
        self, x: Any, state: Any = None, *, lengths: ArrayLike | None = None, training: bool = False, rng: Seed = None
    ) -> tuple[Any, Any, Any]:
        if training and lengths is not None and np.ndim(x) == 3:
            raise InputError(f"lengths: {self!r} takes mean and variance over all steps, those of padding too")
        return super().forward(x, state, lengths=lengths, training=training, rng=rng)

    def _forward(self, x, rng):
        parameters, _ = self.current_weights()
        x, axes = self._validated(x)
        count = x.size // self.num_features
        if count < 2:
            raise InputError(f"x: shape is {list(x.shape)}, expected more than one value of each channel in training")
        with np.errstate(all="ignore"):
            mean = x.mean(axes, dtype=np.float64).astype(np.float32)
            centred = x - self._as_channels(mean, x)
            variance = np.square(centred).mean(axes, dtype=np.float64).astype(np.float32)
            scale = self._as_channels(1 / np.sqrt(variance + np.float32(self.eps)), x)
            normal = centred * scale
            weight, bias = (self._as_channels(parameters[name], x) for name in ("weight", "bias"))
            moves = [
                np.float32(self.momentum) * (parameters[name] - of_batch)
                for name, of_batch in zip(self.buffers, (mean, variance * np.float32(count / (count - 1))), strict=True)
            ]
            return normal * weight + bias, normal, scale, weight, *moves

    def _backward(self, dy, normal, scale, weight, *moves):
        """Compute dx = (d - mean(d) - n * mean(d * n)) * scale, where d = dy * weight and n = (x - mean) * scale."""
        axes = self._validated(normal)[1]
        d = dy * weight
        dx = (d - d.mean(axes, keepdims=True) - normal * (d * normal).mean(axes, keepdims=True)) * scale
        gradients = {"weight": (dy * normal).sum(axes), "bias": dy.sum(axes)}
        return dx, gradients | dict(zip(self.buffers, moves, strict=True))

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        size = self.num_features
        return [SummaryRow(repr(self), shape or ("N", size), 4 * size, 0, 16 * size)]


def _mean(x):
    """Return the mean of the last axis; contiguous rows make the result independent of x's strides."""
    return np.ascontiguousarray(x).mean(-1, keepdims=True, dtype=np.float32)
