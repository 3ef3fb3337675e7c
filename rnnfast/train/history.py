"""The history of training, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class History(dict[str, list[float]]):
    """A dict of name to one number for each epoch.

    The names are "loss", those of the metrics, "learning_rate" (after the epoch), and for validation data "val_loss"
    and the metrics after "val_".

    Attributes:
        stopped: Whether training ended early because `patience` epochs brought no improvement, or a callback ended it.
    """

    def __init__(self, values: Mapping[str, list[float]] | Iterable[tuple[str, list[float]]] = ()) -> None:
        super().__init__(values)
        self.stopped = False

    @property
    def monitored(self) -> list[float]:
        """The losses that decide which epoch is the best: "val_loss", or "loss" without validation data."""
        return self.get("val_loss", self.get("loss", []))

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the smallest monitored loss, counted from 0; None before the first one."""
        losses = self.monitored
        return min(range(len(losses)), key=losses.__getitem__) if losses else None

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        return len(self.get("loss", []))

    def append(self, values: Mapping[str, float]) -> None:
        """Add the values of one epoch."""
        for name, value in values.items():
            self.setdefault(name, []).append(value)
