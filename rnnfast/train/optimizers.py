"""Optimizers with the formulas of torch.optim: `step(values, gradients)` changes a flat float32 vector in place.

The formulas write g for the gradient, v for the value, and a prime for a quantity after the step. Weight decay adds
weight_decay * v to g first; AdamW decays v instead.

The state of an optimizer for one vector is its `state_dict()`: the number of steps, and arrays of the vector's size.
"""

from __future__ import annotations

import math
import numbers
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import InputError, InputTypeError, ModelError
from rnnfast.native import _kernels
from rnnfast.nn.checks import check_flag, check_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from rnnfast.nn.types import FloatArray

    LearningRate = float | Callable[[int], float]

BLOCK = 1 << 15
"""Elements that one update works on, few enough that the dozen passes of a step find them in the cache."""


class Optimizer:
    """The base class of optimizers; subclasses define `slots`, the names of their arrays, and `_update`.

    Args:
        learning_rate: A number, or a callable of the number of steps done, such as those of `rnnfast.train`.
        weight_decay: The factor of weight decay.

    Attributes:
        steps: The number of steps done.

    Raises:
        InputError: A number is negative.
        InputTypeError: An argument has the wrong type.
    """

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the arrays that the optimizer keeps."""
        return ()

    def __init__(self, learning_rate: LearningRate, weight_decay: float) -> None:
        if not callable(learning_rate):
            learning_rate = check_number(learning_rate, "learning_rate", 0.0, math.inf)
        self.learning_rate = learning_rate
        self.weight_decay = check_number(weight_decay, "weight_decay", 0.0, math.inf)
        self.steps = 0
        self._memory: list[FloatArray] | None = None
        self._network: weakref.ref[Any] | None = None

    def bind(self, network: Any, size: int) -> None:
        """Prepare for steps of a network with so many parameters, which `fit` does.

        The state belongs to the network of the steps before: with another one it begins anew. A state that was loaded,
        copied or unpickled goes to the first network.

        Raises:
            InputError: The state is one of vectors of another size.
        """
        if self._network is not None and self._network() is not network:
            self.steps, self._memory = 0, None
        self.check(size)
        self._network = weakref.ref(network)

    def rate(self) -> float:
        """Return the learning rate of the next step.

        Raises:
            InputError: The callable returned no number, or one that is negative or not finite.
        """
        if not callable(self.learning_rate):
            return self.learning_rate
        rate = self.learning_rate(self.steps)
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate < math.inf:
            raise InputError(f"learning_rate: {self.learning_rate!r} gave {rate!r} at step {self.steps}")
        return float(rate)

    def step(self, values: FloatArray, gradients: FloatArray) -> None:
        """Update the values in place.

        Args:
            values: float32 [N], contiguous.
            gradients: float32 [N], contiguous; they may be changed.

        Raises:
            InputError: N is not that of earlier steps, or the learning rate is invalid.
            InputTypeError: An argument is no such vector.
        """
        for array, name in ((values, "values"), (gradients, "gradients")):
            if (
                not isinstance(array, np.ndarray)
                or array.dtype != np.float32
                or array.shape != (np.size(values),)
                or not array.flags.carray
            ):
                received = (
                    f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
                )
                raise InputTypeError(
                    f"{name}: got {received}, expected a contiguous, writeable float32 vector of {np.size(values)}"
                )
        rate = self.rate()
        self.check(len(values))
        if self._memory is None:
            self._memory = [np.zeros(len(values), np.float32) for _ in self.slots]
        memory = self._memory
        self.steps += 1
        for start in range(0, len(values), BLOCK):
            part = slice(start, start + BLOCK)
            v, g = values[part], gradients[part]
            if self.weight_decay:
                self._decay(v, g, rate)
            self._update(rate, v, g, *(array[part] for array in memory))

    def state_dict(self) -> dict[str, Any]:
        """Return the state: "steps" and, after the first step, a copy of each array by its name."""
        arrays = {} if self._memory is None else dict(zip(self.slots, (a.copy() for a in self._memory), strict=True))
        return {"steps": self.steps, **arrays}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from the state that `state_dict()` returned.

        Raises:
            ModelError: The names are not those of this optimizer.
        """
        arrays = {name: np.array(a, np.float32) for name, a in state_dict.items() if name != "steps"}
        if "steps" not in state_dict or arrays and {*arrays} != {*self.slots}:
            raise ModelError(
                f"{type(self).__name__}: state has {', '.join(state_dict) or 'nothing'}, expected steps, "
                f"{', '.join(self.slots)}"
            )
        self.steps, self._network = int(state_dict["steps"]), None
        self._memory = [arrays[name] for name in self.slots] if arrays else None

    def check(self, size: int) -> None:
        """Check the size of a vector.

        Raises:
            InputError: The vectors of earlier steps had another size.
        """
        if self._memory and self._memory[0].size != size:
            raise InputError(f"{type(self).__name__}: got {size} values, expected {self._memory[0].size}, as before")

    def __getstate__(self) -> dict[str, Any]:
        """The attributes of a copy or a pickle, which shares no array, and steps on whichever network comes first."""
        memory = None if self._memory is None else [array.copy() for array in self._memory]
        return self.__dict__ | {"_memory": memory, "_network": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_network": None} | state)  # pickles of older versions have no network

    def _decay(self, v, g, rate):
        """Apply weight decay to a block."""
        g += np.float32(self.weight_decay) * v

    def _update(self, rate: float, v: FloatArray, g: FloatArray, *args: Any, **kwargs: Any) -> None:
        """Update a block of values; the arguments after g are the blocks of the optimizer's arrays."""
        raise NotImplementedError

    def __repr__(self) -> str:
        arguments = {name: value for name, value in vars(self).items() if name not in ("steps", "_memory", "_network")}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD:

        m' = momentum * m + g
        v' = v - rate * m'    or, with nesterov, v' = v - rate * (g + momentum * m')

    Args:
        learning_rate: The rate: a number, or a callable of the number of steps done.
        momentum: From 0 to 1.
        nesterov: Whether to use Nesterov's momentum.
        weight_decay: The factor of weight decay.

    Raises:
        InputError: A number is out of range, or nesterov has no momentum.
        InputTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.momentum = check_number(momentum, "momentum", 0.0, 1.0)
        self.nesterov = check_flag(nesterov, "nesterov")
        if nesterov and not momentum:
            raise InputError("nesterov: needs a momentum above 0")

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def _update(self, rate, v, g, m=None):
        if m is not None:
            m *= np.float32(self.momentum)
            m += g
            g = g + np.float32(self.momentum) * m if self.nesterov else m
        v -= np.float32(rate) * g


class RMSprop(Optimizer):
    """RMSprop, as torch.optim.RMSprop:

        s' = alpha * s + (1 - alpha) * g^2
        d = g / (sqrt(s') + eps)
        m' = momentum * m + d
        v' = v - rate * m'

    Args:
        learning_rate: The rate: a number, or a callable of the number of steps done.
        alpha: From 0 to 1.
        eps: At least 0.
        weight_decay: The factor of weight decay.
        momentum: From 0 to 1.

    Raises:
        InputError: A number is out of range.
        InputTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.alpha = check_number(alpha, "alpha", 0.0, 1.0)
        self.eps = check_number(eps, "eps", 0.0, math.inf)
        self.momentum = check_number(momentum, "momentum", 0.0, 1.0)

    @property
    def slots(self) -> tuple[str, ...]:
        return ("square", "momentum") if self.momentum else ("square",)

    def _update(self, rate, v, g, s, m=None):
        s *= np.float32(self.alpha)
        s += np.float32(1 - self.alpha) * np.square(g)
        d = np.sqrt(s)
        d += np.float32(self.eps)
        np.divide(g, d, out=d)
        if m is not None:
            m *= np.float32(self.momentum)
            m += d
            d = m
        v -= np.float32(rate) * d


class Adam(Optimizer):
    """Adam, as torch.optim.Adam, from Kingma and Ba (2015), "Adam: A Method for Stochastic Optimization":

        m' = b1 * m + (1 - b1) * g
        s' = b2 * s + (1 - b2) * g^2
        v' = v - rate * (m' / (1 - b1^t)) / (sqrt(s' / (1 - b2^t)) + eps),    at step t = 1, 2, ...

    Args:
        learning_rate: The rate: a number, or a callable of the number of steps done.
        betas: (b1, b2), each at least 0 and less than 1.
        eps: At least 0.
        weight_decay: The factor of weight decay.

    Raises:
        InputError: A number is out of range.
        InputTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise InputTypeError(f"betas: got {betas!r}, expected two numbers")
        self.betas = tuple(check_number(beta, "betas", 0.0, 1.0) for beta in betas)
        self.eps = check_number(eps, "eps", 0.0, math.inf)
        if 1 in self.betas:
            raise InputError(f"betas: {betas!r}, expected less than 1")

    @property
    def slots(self) -> tuple[str, ...]:
        return ("mean", "square")

    def _update(self, rate, v, g, m, s):
        b1, b2 = self.betas
        # Both bias corrections are folded into eps and the rate.
        scale = math.sqrt(1 - b2**self.steps)
        _kernels.adam(g, v, m, s, b1, b2, self.eps * scale, rate * scale / (1 - b1**self.steps))


class AdamW(Adam):
    """Adam with decoupled weight decay, as torch.optim.AdamW.

    Before the step of Adam, rate * weight_decay * v is subtracted from v, as in Loshchilov and Hutter (2019),
    "Decoupled Weight Decay Regularization".

    Args:
        learning_rate: The rate: a number, or a callable of the number of steps done.
        betas: (b1, b2), each at least 0 and less than 1.
        eps: At least 0.
        weight_decay: The factor of weight decay.

    Raises:
        InputError: A number is out of range.
        InputTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(learning_rate, betas, eps, weight_decay)

    def _decay(self, v, g, rate):
        v *= np.float32(1 - rate * self.weight_decay)
