"""What happened in training, epoch by epoch."""


class History(dict):
    """Name -> one number for each epoch: "loss", the metrics, "learning_rate" after the epoch, and for validation data
    the same after "val_".

    best_epoch: the epoch, counted from 0, with the smallest "val_loss", or "loss" without validation data; None before
        the first.
    stopped: whether training ended early, as `patience` epochs had brought nothing better.
    """

    def __init__(self, values=()):
        super().__init__(values)
        self.stopped = False

    @property
    def monitored(self):
        """The losses that tell which epoch is the best."""
        return self.get("val_loss", self.get("loss", []))

    @property
    def best_epoch(self):
        losses = self.monitored
        return min(range(len(losses)), key=losses.__getitem__) if losses else None

    @property
    def epochs(self):
        return len(self.get("loss", []))

    def append(self, values):
        """One epoch more."""
        for name, value in values.items():
            self.setdefault(name, []).append(value)
