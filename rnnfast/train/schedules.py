"""Learning-rate schedules: callables of the number of steps done, which is 0 at the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rnnfast.nn.checks import check_number, check_size


class _Schedule:
    """The base class of schedules. It checks their fields: numbers of at least 0, and integers for numbers of steps."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if name in ("steps", "warmup"):
                check_size(value, name, least=int(name == "steps"))
            else:
                check_number(value, name, 0.0, math.inf)


@dataclass(frozen=True)
class InverseTimeDecay(_Schedule):
    """learning_rate / (1 + decay * step), as keras.optimizers.schedules.InverseTimeDecay with decay_steps=1.

    Args:
        learning_rate: The first learning rate.
        decay: The decay of each step.

    Raises:
        InputError: A number is negative.
        InputTypeError: An argument is no number.
    """

    learning_rate: float
    decay: float

    def __call__(self, step: int) -> float:
        return self.learning_rate / (1 + self.decay * step)


@dataclass(frozen=True)
class _Decay(_Schedule):
    """The fields of a decay by the factor `rate` in `steps` steps."""

    learning_rate: float
    rate: float
    steps: int


class ExponentialDecay(_Decay):
    """learning_rate * rate ** (step / steps), as keras.optimizers.schedules.ExponentialDecay.

    Args:
        learning_rate: The first learning rate.
        rate: The factor.
        steps: The number of steps in which the factor is reached.

    Raises:
        InputError: A number is negative, or `steps` is 0.
        InputTypeError: An argument is no number, or `steps` is no integer.
    """

    def __call__(self, step: int) -> float:
        return self.learning_rate * self.rate ** (step / self.steps)


class StepDecay(_Decay):
    """learning_rate * rate ** floor(step / steps), as torch.optim.lr_scheduler.StepLR.

    Args:
        learning_rate: The first learning rate.
        rate: The factor.
        steps: The number of steps after which the factor is applied again.

    Raises:
        InputError: A number is negative, or `steps` is 0.
        InputTypeError: An argument is no number, or `steps` is no integer.
    """

    def __call__(self, step: int) -> float:
        return self.learning_rate * self.rate ** (step // self.steps)


@dataclass(frozen=True)
class CosineDecay(_Schedule):
    """Half a cosine from learning_rate down to `least`, after a linear warm-up.

    During warm-up the rate is learning_rate * (step + 1) / warmup. After it, with
    d = min(1, (step - warmup) / max(1, steps - warmup)), the rate is
    least + (learning_rate - least) * (1 + cos(pi * d)) / 2, as in Loshchilov and Hutter (2017), "SGDR: Stochastic
    Gradient Descent with Warm Restarts", without restarts.

    Args:
        learning_rate: The largest learning rate.
        steps: The number of steps, warm-up included, after which the rate is `least`.
        warmup: The number of steps of the warm-up.
        least: The last learning rate.

    Raises:
        InputError: A number is negative, or `steps` is 0.
        InputTypeError: An argument is no number, or a number of steps is no integer.
    """

    learning_rate: float
    steps: int
    warmup: int = 0
    least: float = 0.0

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.least + (self.learning_rate - self.least) * (1 + math.cos(math.pi * done)) / 2
