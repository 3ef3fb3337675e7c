"""Optimisers, with torch's formulas and defaults: `step(values, gradients)` changes a flat float32 vector in place.

learning_rate: a number, or a callable of the number of steps done (`schedules`). weight_decay: times the values, added
to the gradients; AdamW takes it from the values instead.

What an optimiser remembers of one vector is its `state_dict()`: the number of steps and arrays of the vector's size.
"""

import math
import numbers

import numpy as np

from rnnfast.errors import InputError, InputTypeError, ModelError
from rnnfast.native import _kernels
from rnnfast.nn.checks import check_flag, check_number

BLOCK = 1 << 15
"""Elements that one update works on: a step's dozen passes find them in the cache."""


class Optimizer:
    """What the optimisers below share; each has its formula in `_update`."""

    slots = ()
    """Names of the arrays that it remembers."""

    def __init__(self, learning_rate, weight_decay):
        if not callable(learning_rate):
            learning_rate = check_number(learning_rate, "learning_rate", 0.0, math.inf)
        self.learning_rate = learning_rate
        self.weight_decay = check_number(weight_decay, "weight_decay", 0.0, math.inf)
        self.steps = 0
        self._memory = None

    def rate(self):
        """The learning rate of the next step."""
        if not callable(self.learning_rate):
            return self.learning_rate
        rate = self.learning_rate(self.steps)
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate < math.inf:
            raise InputError(f"learning_rate: {self.learning_rate!r} gave {rate!r} at step {self.steps}")
        return float(rate)

    def step(self, values, gradients):
        """values, gradients: float32 vectors of one size; gradients may be changed."""
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

    def state_dict(self):
        """{"steps": their number, and each slot's array, once there was a step}; copies."""
        arrays = {} if self._memory is None else dict(zip(self.slots, (a.copy() for a in self._memory), strict=True))
        return {"steps": self.steps, **arrays}

    def load_state_dict(self, state_dict):
        """Go on from what `state_dict()` gave."""
        arrays = {name: np.array(a, np.float32) for name, a in state_dict.items() if name != "steps"}
        if "steps" not in state_dict or arrays and {*arrays} != {*self.slots}:
            raise ModelError(
                f"{type(self).__name__}: state has {', '.join(state_dict) or 'nothing'}, expected steps, "
                f"{', '.join(self.slots)}"
            )
        self.steps = int(state_dict["steps"])
        self._memory = [arrays[name] for name in self.slots] if arrays else None

    def check(self, size):
        """Refuse a vector of another size than those before."""
        if self._memory and self._memory[0].size != size:
            raise InputError(f"{type(self).__name__}: got {size} values, expected {self._memory[0].size}, as before")

    def _decay(self, v, g, rate):
        g += np.float32(self.weight_decay) * v

    def _update(self, rate, v, g, *memory):
        raise NotImplementedError

    def __repr__(self):
        given = {name: value for name, value in vars(self).items() if name not in ("steps", "_memory")}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


class SGD(Optimizer):
    """m' = momentum * m + g;  v' = v - rate * m', or with nesterov v' = v - rate * (g + momentum * m')"""

    def __init__(self, learning_rate=1e-3, momentum=0.0, nesterov=False, weight_decay=0.0):
        super().__init__(learning_rate, weight_decay)
        self.momentum = check_number(momentum, "momentum", 0.0, 1.0)
        self.nesterov = check_flag(nesterov, "nesterov")
        if nesterov and not momentum:
            raise InputError("nesterov: needs a momentum above 0")

    @property
    def slots(self):
        return ("momentum",) if self.momentum else ()

    def _update(self, rate, v, g, m=None):
        if m is not None:
            m *= np.float32(self.momentum)
            m += g
            g = g + np.float32(self.momentum) * m if self.nesterov else m
        v -= np.float32(rate) * g


class RMSprop(Optimizer):
    """s' = alpha * s + (1 - alpha) * g^2;  d = g / (sqrt(s') + eps);  m' = momentum * m + d;  v' = v - rate * m'"""

    def __init__(self, learning_rate=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0):
        super().__init__(learning_rate, weight_decay)
        self.alpha = check_number(alpha, "alpha", 0.0, 1.0)
        self.eps = check_number(eps, "eps", 0.0, math.inf)
        self.momentum = check_number(momentum, "momentum", 0.0, 1.0)

    @property
    def slots(self):
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
    """m' = b1 * m + (1 - b1) * g;  s' = b2 * s + (1 - b2) * g^2
    v' = v - rate * (m' / (1 - b1^t)) / (sqrt(s' / (1 - b2^t)) + eps),  at step t = 1, 2 ..."""

    slots = ("mean", "square")

    def __init__(self, learning_rate=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(learning_rate, weight_decay)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise InputTypeError(f"betas: got {betas!r}, expected two numbers")
        self.betas = tuple(check_number(beta, "betas", 0.0, 1.0) for beta in betas)
        self.eps = check_number(eps, "eps", 0.0, math.inf)
        if 1 in self.betas:
            raise InputError(f"betas: {betas!r}, expected less than 1")

    def _update(self, rate, v, g, m, s):
        b1, b2 = self.betas
        # both corrections go into eps and the rate
        scale = math.sqrt(1 - b2**self.steps)
        _kernels.adam(g, v, m, s, b1, b2, self.eps * scale, rate * scale / (1 - b1**self.steps))


class AdamW(Adam):
    """Adam, and before it v' = v - rate * weight_decay * v"""

    def __init__(self, learning_rate=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(learning_rate, betas, eps, weight_decay)

    def _decay(self, v, g, rate):
        v *= np.float32(1 - rate * self.weight_decay)
