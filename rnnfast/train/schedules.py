"""Learning rates that change: callables of the number of steps done, which is 0 at the first."""

import math
from dataclasses import dataclass

from rnnfast.nn.checks import check_number, check_size


class _Schedule:
    """Numbers are not below 0, those of steps integers."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if name in ("steps", "warmup"):
                check_size(value, name, least=int(name == "steps"))
            else:
                check_number(value, name, 0.0, math.inf)


@dataclass(frozen=True)
class InverseTimeDecay(_Schedule):
    """learning_rate / (1 + decay * step), the `decay` of Keras's optimisers."""

    learning_rate: float
    decay: float

    def __call__(self, step):
        return self.learning_rate / (1 + self.decay * step)


@dataclass(frozen=True)
class _Decay(_Schedule):
    """By the factor `rate` in so many steps."""

    learning_rate: float
    rate: float
    steps: int


class ExponentialDecay(_Decay):
    """learning_rate * rate ** (step / steps)"""

    def __call__(self, step):
        return self.learning_rate * self.rate ** (step / self.steps)


class StepDecay(_Decay):
    """learning_rate * rate ** floor(step / steps)"""

    def __call__(self, step):
        return self.learning_rate * self.rate ** (step // self.steps)


@dataclass(frozen=True)
class CosineDecay(_Schedule):
    """From learning_rate down to `least` on half a cosine, reached after `steps`; before it `warmup` of these steps
    rise on a line, the first to learning_rate / warmup."""

    learning_rate: float
    steps: int
    warmup: int = 0
    least: float = 0.0

    def __call__(self, step):
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.least + (self.learning_rate - self.least) * (1 + math.cos(math.pi * done)) / 2
