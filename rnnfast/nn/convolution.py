"""Convolution along time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rnnfast.errors import InputError
from rnnfast.native import _kernels
from rnnfast.nn.checks import as_input, check_choice, check_flag, check_size, check_weights
from rnnfast.nn.linear import uniform
from rnnfast.nn.module import Module, Sizes, SummaryRow

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rnnfast.nn.types import FloatArray, Matmul, Seed, Shape, SummaryShape

PADDINGS = ("valid", "same", "causal")


class Conv1d(Module):
    """A convolution along time, as torch.nn.Conv1d:

        y[n, o, t] = bias[o] + sum over c, k of weight[o, c, k] * x[n, c, stride * t + dilation * k - padding]

    x is 0 outside of its L time steps. With groups, the outputs of a group see the channels of that group alone.

    State dict: weight [out_channels, in_channels / groups, kernel_size] and bias [out_channels], uniform in
    +-1/sqrt(in_channels / groups * kernel_size).

    Args:
        in_channels: The number of channels of x.
        out_channels: The number of channels of y.
        kernel_size: The number of taps K.
        stride: The number of steps of x between two of y.
        padding: The number of zeros before and after x; or "valid" for none, "same" for as many steps of y as of x
            (with stride=1), "causal" for zeros before x only, so that y sees no later steps.
        dilation: The number of steps between two taps.
        groups: The number of groups, which divides both numbers of channels.
        bias: Whether the layer has a bias.
        channels_last: Whether x and y are [N, L, channels], as recurrent layers with batch_first take them.
        matmul: As in Linear.
        threads: As in Linear.
        rng: A seed or a numpy Generator for the initial weights; None draws them from fresh entropy.

    Raises:
        InputError: An argument is out of range, or arguments contradict each other.
        InputTypeError: An argument has the wrong type.
        LimitError: The weights are too large.
        UnsupportedError: matmul="blas" without SciPy.
    """

    takes_floats = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | Literal["valid", "same", "causal"] = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        channels_last: bool = False,
        matmul: Matmul = None,
        threads: int | None = None,
        rng: Seed = None,
    ) -> None:
        self.in_channels, self.out_channels = (
            check_size(in_channels, "in_channels"),
            check_size(out_channels, "out_channels"),
        )
        self.kernel_size, self.stride = check_size(kernel_size, "kernel_size"), check_size(stride, "stride")
        self.dilation, self.groups = check_size(dilation, "dilation"), check_size(groups, "groups")
        self.padding: Any = (
            check_choice(padding, "padding", PADDINGS)
            if isinstance(padding, str)
            else check_size(padding, "padding", least=0)
        )
        self.bias, self.channels_last = check_flag(bias, "bias"), check_flag(channels_last, "channels_last")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise InputError(f"groups: {groups} does not divide {in_channels} and {out_channels} channels")
        if self.padding == "same" and self.stride != 1:
            raise InputError(f"padding: 'same' needs stride=1, got {stride}")
        self.matmul = _kernels.check_matmul(matmul)
        self._use_threads(threads)
        check_weights(self, self.shapes().values())
        self._initialize(rng)

    def product_weights(self):
        return ("weight",)

    def sizes(self) -> Sizes:
        return "last" if self.channels_last else "channels", self.in_channels, self.out_channels

    @property
    def is_stepwise(self) -> bool:
        return False

    @property
    def margins(self) -> tuple[int, int]:
        """The numbers of zeros before and after x."""
        reach = self.dilation * (self.kernel_size - 1)
        if isinstance(self.padding, int):
            return self.padding, self.padding
        return {"valid": (0, 0), "same": (reach // 2, reach - reach // 2), "causal": (reach, 0)}[self.padding]

    def shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {
            "weight": (self.out_channels, self.in_channels // self.groups, self.kernel_size),
            "bias": (self.out_channels,),
        }
        return shapes if self.bias else {"weight": shapes["weight"]}

    def _draw(self, rng):
        return uniform(self.shapes(), 1 / np.sqrt(self.in_channels // self.groups * self.kernel_size), rng)

    def _pack(self, parameters):
        rows = parameters["weight"].reshape(self.groups, self.out_channels // self.groups, -1)
        biases = np.split(parameters["bias"], self.groups) if self.bias else [None] * self.groups
        return [
            _kernels.Matrix(weight.T, bias, matmul=self.matmul, weight_type=self.weight_type)
            for weight, bias in zip(rows, biases, strict=True)
        ]

    def __call__(self, x: ArrayLike) -> FloatArray:
        """Compute the convolution.

        Args:
            x: float32 [N, in_channels, L], or [N, L, in_channels] with channels_last; without N for a single one.

        Returns:
            float32 in the same form, with out_channels and the steps
            1 + (L + zeros before and after - dilation * (kernel_size - 1) - 1) // stride.

        Raises:
            InputError: The shape does not fit, or x is shorter than the taps reach.
            InputTypeError: x is not float32.
        """
        x = as_input(x, "x")
        windows = self._windows(x)
        per_group = zip(self._packed, windows, strict=True)
        y = np.concatenate(
            [matrix.multiply(rows, threads=self.thread_count) for matrix, rows in per_group], axis=-1
        )  # [N, steps, out_channels]
        y = y if self.channels_last else np.ascontiguousarray(y.swapaxes(1, 2))
        return y if x.ndim == 3 else y[0]

    def _windows(self, x):
        """Return what each group multiplies: arrays [N, steps, channels of a group * K] of the taps of each step."""
        channels = x.shape[-1 if self.channels_last else -2] if x.ndim in (2, 3) else None
        if channels != self.in_channels:
            axes = f"L, {self.in_channels}" if self.channels_last else f"{self.in_channels}, L"
            raise InputError(f"x: shape is {list(x.shape)}, expected [N, {axes}] or, without a batch, [{axes}]")
        x = x if x.ndim == 3 else x[None]
        x = x.swapaxes(1, 2) if self.channels_last else x
        reach = self.dilation * (self.kernel_size - 1) + 1
        x = np.pad(x, ((0, 0), (0, 0), self.margins))
        if x.shape[2] < reach:
            raise InputError(
                f"x: {x.shape[2] - sum(self.margins)} steps with {sum(self.margins)} zeros, expected at least {reach} "
                "together, which the taps reach"
            )
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=2)[:, :, :: self.stride, :: self.dilation]
        rows, _, steps, taps = windows.shape
        width = self.in_channels // self.groups
        windows = windows.reshape(rows, self.groups, width, steps, taps).transpose(1, 0, 3, 2, 4)
        return np.ascontiguousarray(windows).reshape(self.groups, rows, steps, width * taps)

    def _forward(self, x, rng):
        parameters, _ = self.current_weights()
        x = as_input(x, "x")
        return self(x), x, parameters["weight"]

    def _backward(self, dy, x, weight):
        """Compute dW = dy^T times the windows, dx as the sum of what each tap gives back, and db."""
        batched = x if x.ndim == 3 else x[None]
        dy = dy if x.ndim == 3 else dy[None]
        dy = dy if self.channels_last else dy.swapaxes(1, 2)  # [N, steps, out_channels]
        length = batched.shape[1 if self.channels_last else 2]
        rows, steps = dy.shape[:2]
        by_group = np.ascontiguousarray(dy).reshape(rows * steps, self.groups, self.out_channels // self.groups)
        before, after = self.margins
        width = self.in_channels // self.groups
        dx = np.zeros((rows, self.in_channels, before + length + after), np.float32)
        dweight = np.empty_like(weight).reshape(self.groups, self.out_channels // self.groups, -1)
        for group, windows in enumerate(self._windows(batched)):
            part = np.ascontiguousarray(by_group[:, group])
            dweight[group] = part.T @ windows.reshape(rows * steps, width * self.kernel_size)
            flat = weight.reshape(dweight.shape)[group]
            back = _kernels.Matrix(flat, matmul=self.matmul).multiply(part, threads=self.thread_count)
            back = back.reshape(rows, steps, width, self.kernel_size)
            channels = slice(group * width, (group + 1) * width)
            for k in range(self.kernel_size):
                first = k * self.dilation
                taps = slice(first, first + self.stride * (steps - 1) + 1, self.stride)
                dx[:, channels, taps] += back[..., k].swapaxes(1, 2)
        dx = dx[:, :, before : before + length]
        dx = np.ascontiguousarray(dx.swapaxes(1, 2) if self.channels_last else dx).reshape(x.shape)
        dweights = {"weight": dweight.reshape(weight.shape)}
        if self.bias:
            dweights["bias"] = dy.sum((0, 1))
        return dx, dweights

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        weights = self.out_channels * self.in_channels // self.groups * self.kernel_size
        parameters = weights + self.bias * self.out_channels
        output = ("N", "L", self.out_channels) if self.channels_last else ("N", self.out_channels, "L")
        return [SummaryRow(repr(self), output, parameters, 2 * weights, self._nbytes(self.shapes()))]
