"""Callbacks: functions of the user that `fit` calls after batches and epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rnnfast.errors import InputTypeError
from rnnfast.nn.checks import check_number

if TYPE_CHECKING:
    from rnnfast.nn.module import Module
    from rnnfast.train.history import History
    from rnnfast.train.loop import Run


class Training:
    """A training in progress, as callbacks see it.

    Attributes:
        net: The network, with its weights of now. Weights that a callback loads into it are replaced by the next step.
        history: The history of the epochs that are done.
        values: After a batch the means of the loss and the metrics of this epoch so far; after an epoch all its values.
        stop: Whether training is to end: False, and True once a callback has set it. After a batch, the epoch ends with
            the batches that were done.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.net: Module = run.net
        self.history: History = run.history
        self.values: dict[str, float] = {}
        self.stop = False

    @property
    def epoch(self) -> int:
        """The number of epochs that are done, this one not counted after a batch, and counted after an epoch."""
        return self.history.epochs

    @property
    def step(self) -> int:
        """The number of steps of the optimizer."""
        return self._run.optimizer.steps

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step. Setting it replaces a schedule, and stays set at the optimizer."""
        return self._run.optimizer.rate()

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._run.optimizer.learning_rate = check_number(rate, "learning_rate", 0.0, float("inf"))


class Callback:
    """The methods of a callback. A subclass, or any other object, has one of them or both."""

    def on_batch_end(self, training: Training) -> None:
        """Take note of a step, or of a batch in which nothing counts; it may change `learning_rate` and `stop`."""

    def on_epoch_end(self, training: Training) -> None:
        """Take note of an epoch, before its checkpoint is written; it may change `learning_rate` and `stop`."""


class Callbacks:
    """The callbacks of one training."""

    def __init__(self, callbacks: Any, run: Run) -> None:
        self._all = callbacks if isinstance(callbacks, (list, tuple)) else (callbacks,)
        self.training = Training(run)
        for callback in self._all:
            if isinstance(callback, type) or not any(
                callable(getattr(callback, name, None)) for name in ("on_batch_end", "on_epoch_end")
            ):
                kind = (
                    f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
                )
                raise InputTypeError(f"callbacks: got {kind}, expected objects with on_batch_end or on_epoch_end")

    def call(self, name: str, values: Any) -> bool:
        """Call a method of all callbacks, with the values that a function returns; return whether to end training."""
        methods = [method for callback in self._all if (method := getattr(callback, name, None)) is not None]
        if methods:
            self.training.values = values()
        for method in methods:
            method(self.training)
        return bool(self.training.stop)
