"""fit, evaluate and predict, for networks with `forward` and `backward`; the first axis of all arrays is examples."""

from __future__ import annotations

import math
import numbers
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import (
    DivergedError,
    Error,
    InputError,
    InputTypeError,
    ModelError,
    raises_limit_error,
    with_location,
)
from rnnfast.nn.checks import as_generator, check_flag, check_number, check_size
from rnnfast.train import checkpoint as checkpoints
from rnnfast.train import clipping, progress
from rnnfast.train.examples import Examples
from rnnfast.train.history import History
from rnnfast.train.losses import MAE, MSE, BinaryCrossEntropy, CrossEntropy
from rnnfast.train.metrics import accuracy
from rnnfast.train.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from rnnfast.train.parameters import Parameters
from rnnfast.train.trace import first_wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike

    from rnnfast.nn.module import Module
    from rnnfast.nn.types import FloatArray, Seed

    Loss = Callable[..., tuple[float, FloatArray]]
    Metrics = str | Callable[..., Any] | Sequence[str | Callable[..., Any]]

# What the arguments loss, optimizer and metrics may be by name.
LOSSES: dict[str, type] = {
    "binary_cross_entropy": BinaryCrossEntropy,
    "cross_entropy": CrossEntropy,
    "mae": MAE,
    "mse": MSE,
}
OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "rmsprop": RMSprop, "sgd": SGD}
METRICS: dict[str, Callable[..., Any]] = {"accuracy": accuracy, "mae": MAE(), "mse": MSE()}


@raises_limit_error
def fit(
    net: Module,
    x: Any,
    y: ArrayLike,
    *,
    loss: Loss | str,
    optimizer: Optimizer | str,
    epochs: int = 1,
    batch_size: int = 32,
    lengths: Any = None,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: Mapping[int, float] | ArrayLike | None = None,
    validation_data: tuple[Any, ...] | None = None,
    validation_split: float | None = None,
    shuffle: bool = True,
    seed: Seed = None,
    metrics: Metrics = (),
    clip_norm: float | None = None,
    clip_value: float | None = None,
    tbptt: int | None = None,
    patience: int | None = None,
    restore_best: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    verbose: bool = True,
) -> History:
    """Train a network.

    The values of an epoch are means over its batches, each as it was computed during training. A batch, or a chunk of
    `tbptt`, in which no element counts makes no step.

    Args:
        net: The network, whose recurrent layers must be batch_first.
        x: The inputs, [examples, ...], for recurrent layers [examples, time, ...]; an array or a tuple of arrays. A
            list of arrays [time, ...] of different lengths is padded with zeros, and gives the lengths.
        y: The targets, as the loss takes them: [examples, ...], or [examples, time, ...] if the network has an output
            for each time step; then a list of arrays of the lengths of x may be given. For outputs [..., 1], losses
            that compare numbers take [...] too.
        loss: A loss: `loss(y, target, mask)` returns (value, dy); or the name of one of `rnnfast.train`: "mse", "mae",
            "cross_entropy" or "binary_cross_entropy".
        optimizer: An Optimizer; one that was used with this network before continues, with another it begins
            anew. Or the name of one with its defaults: "adam", "adamw", "rmsprop" or "sgd".
        epochs: The number of epochs, those of a resumed training included.
        batch_size: The number of examples of a batch.
        lengths: Integers [examples], the number of valid time steps of each. For a tuple x, a tuple of these, or None,
            for each array; those of the last array are those of y.
        mask: bool of y's shape or its first axes, True where loss and metrics count an element, or the weight of each.
            None is all elements or, if y has a time axis, those within the lengths.
        sample_weight: The weights of elements, of y's shape or its first axes: loss and metrics are
            sum(weight * value) / sum(weight), where the mask counts. None is 1.
        class_weight: The weight of the elements of each class of y, which holds integers: a vector, or a dict in which
            missing classes have weight 1. None is 1.
        validation_split: The share of the examples that are taken from the end, before any shuffling, to evaluate after
            each epoch, instead of validation_data. They keep their weights.
        validation_data: (x, y), (x, y, lengths) or (x, y, lengths, mask), to evaluate after each epoch.
        shuffle: Whether to shuffle the examples of each epoch.
        seed: A seed or a numpy Generator for shuffling and dropout; the same seed gives the same bits.
        metrics: One or a list: "accuracy", "mae", "mse", or callables `metric(y, target, mask)` that return a mean,
            such as a loss.
        clip_norm: The maximum norm of all gradients together.
        clip_value: The maximum absolute value of each gradient.
        tbptt: Truncated back-propagation through time: the optimizer makes a step for each `tbptt` time steps; the
            state is carried over to the next ones, the gradient is not.
        patience: The number of epochs without a smaller "val_loss" ("loss" without validation data) that end training.
        restore_best: Whether to load the weights of the best epoch at the end; needs patience.
        checkpoint: A safetensors file that is written after each epoch.
        checkpoint_every: The number of steps after which it is written too.
        resume: Whether to resume from the checkpoint, if the file exists; the result has the same bits as without the
            interruption.
        verbose: Whether to show progress on a terminal.

    Returns:
        The history, with one number for each epoch.

    Raises:
        DivergedError: The loss or a gradient is NaN or infinite. The message names the step and the first layer whose
            output is not finite; the network has the weights from before that step.
        InputError: A shape or value does not fit.
        InputTypeError: A dtype or type does not fit.
        ModelError: The checkpoint is invalid or is one of another training.
        UnsupportedError: A layer has no gradient, or a checkpoint is asked for and safetensors is not installed.
    """
    examples = Examples(net, x, _needed(y), lengths, mask, sample_weight, class_weight)
    validation = None if validation_data is None else _validation(net, validation_data)
    if validation_split is not None:
        if validation is not None:
            raise InputError("validation_split: given beside validation_data, expected one of them")
        examples, validation = examples.split(check_number(validation_split, "validation_split", 0.0, 1.0))
    loss, optimizer = _named(loss, LOSSES, "loss"), _named(optimizer, OPTIMIZERS, "optimizer")
    run = Run(net, examples, loss, optimizer, batch_size, shuffle, seed, metrics, clip_norm, clip_value, tbptt)
    epochs = check_size(epochs, "epochs")
    patience = None if patience is None else check_size(patience, "patience")
    every = None if checkpoint_every is None else check_size(checkpoint_every, "checkpoint_every")
    keep_best = check_flag(restore_best, "restore_best") and patience is not None
    path = None if checkpoint is None else checkpoints.check(checkpoint)
    if path is None and (resume or every):
        raise InputError(f"{'resume' if resume else 'checkpoint_every'}: needs checkpoint, a file")
    if resume and path is not None and path.exists():
        checkpoints.restore(path, run)
        if keep_best and run.best is None and run.history.epochs:
            raise ModelError(
                f"{path}: has no weights of a best epoch, as its training had no patience; expected restore_best=False"
            )

    run.optimizer.bind(net, run.parameters.trained)
    history = run.history
    with np.errstate(all="ignore"), progress.make(verbose) as shown:
        while history.epochs < epochs and not _exhausted(history, patience):
            run.begin_epoch()
            shown.begin(f"epoch {history.epochs + 1}/{epochs}", run.steps_per_epoch, run.steps_done)
            for _ in run.steps():
                shown.advance(run.steps_done, run.means)
                if every and run.optimizer.steps % every == 0:
                    checkpoints.save(path, run)
            values = run.means() | {"learning_rate": run.optimizer.rate()}
            if validation is not None:
                values |= _validated(net, validation, run)
                if not math.isfinite(values["val_loss"]):
                    raise DivergedError(
                        f"epoch {history.epochs + 1}: the loss of validation_data is {values['val_loss']}"
                    )
            run.end_epoch(values, keep_best)
            shown.end(values)
            if path is not None:
                checkpoints.save(path, run)
    history.stopped = _exhausted(history, patience)
    if keep_best and run.best is not None:
        run.parameters.values[:] = run.best
        run.parameters.load()
    return history


@raises_limit_error
def evaluate(
    net: Module,
    x: Any,
    y: ArrayLike,
    *,
    loss: Loss | str,
    batch_size: int = 256,
    lengths: Any = None,
    mask: ArrayLike | None = None,
    metrics: Metrics = (),
    verbose: bool = True,
) -> dict[str, float]:
    """Compute the loss and metrics of a network, without dropout.

    Args:
        net: As in `fit`.
        x: As in `fit`.
        y: As in `fit`.
        loss: As in `fit`.
        batch_size: The number of examples that are computed at a time.
        lengths: As in `fit`.
        mask: As in `fit`.
        metrics: As in `fit`.
        verbose: Whether to show progress on a terminal, if there is more than one batch.

    Returns:
        "loss" and each metric by name: means over all elements that count.

    Raises:
        InputError: A shape or value does not fit.
        InputTypeError: A dtype or type does not fit.
    """
    return _evaluate(
        net,
        Examples(net, x, _needed(y), lengths, mask),
        _callable(_named(loss, LOSSES, "loss"), "loss"),
        check_size(batch_size, "batch_size"),
        _metrics(metrics),
        verbose,
    )


@raises_limit_error
def predict(net: Module, x: Any, *, batch_size: int = 256, lengths: Any = None, verbose: bool = True) -> FloatArray:
    """Compute the outputs of a network for all examples, without dropout.

    Args:
        net: As in `fit`.
        x: As in `fit`.
        batch_size: The number of examples that are computed at a time.
        lengths: As in `fit`.
        verbose: Whether to show progress on a terminal, if there is more than one batch.

    Returns:
        float32 [examples, ...].

    Raises:
        InputError: A shape or value does not fit.
        InputTypeError: A dtype or type does not fit.
    """
    examples = Examples(net, x, None, lengths)
    outputs: list[FloatArray] = []
    size = check_size(batch_size, "batch_size")
    with progress.make(verbose and examples.count > size) as shown:
        shown.begin("predict", -(-examples.count // size))
        for batch in examples.batches(size):
            outputs.append(net.forward(batch.x, lengths=batch.lengths)[0])
            shown.advance(len(outputs))
    return np.concatenate(outputs)


class Run:
    """A training in progress: its step, and all the state that a checkpoint holds."""

    def __init__(self, net, data, loss, optimizer, batch_size, shuffle, seed, metrics, clip_norm, clip_value, tbptt):
        if not isinstance(optimizer, Optimizer):
            raise InputTypeError(f"optimizer: got {_kind(optimizer)}, expected an Optimizer")
        self.net, self.data, self.loss, self.optimizer = net, data, _callable(loss, "loss"), optimizer
        self.batch_size = check_size(batch_size, "batch_size")
        self.shuffle = check_flag(shuffle, "shuffle")
        self.metrics = _metrics(metrics)
        self.clip_norm, self.clip_value = (
            None if value is None else check_number(value, name, 0.0, math.inf)
            for value, name in ((clip_norm, "clip_norm"), (clip_value, "clip_value"))
        )
        self.tbptt = None if tbptt is None else check_size(tbptt, "tbptt")
        self.starts = (0,) if tbptt is None else data.chunks(net, self.tbptt)
        self.batches = -(-data.count // self.batch_size)
        self.steps_per_epoch = self.batches * len(self.starts)

        self.parameters = Parameters(net)
        self.rng: Any = as_generator(seed, "seed")
        self.history = History()
        self.best = None  # parameter values of the best epoch
        self.order_state = None  # the generator's state before it shuffled the examples of this epoch
        self._begin()

    def _begin(self):
        """Reset the state of an epoch."""
        self.steps_done = 0  # in this epoch
        self.state = None  # initial state of the batch's next chunk
        self.sums, self.weight = dict.fromkeys(("loss", *self.metrics), 0.0), 0

    def begin_epoch(self):
        """Draw the order of the examples; an interrupted epoch's is drawn again from the generator's old state."""
        resumed = self.order_state is not None
        now = self.rng.bit_generator.state
        if resumed:
            self.rng.bit_generator.state = self.order_state
        else:
            self.order_state = now
        self.order = self.rng.permutation(self.data.count) if self.shuffle else None
        if resumed:
            self.rng.bit_generator.state = now

    def steps(self):
        """Run the remaining steps of the epoch, one each time that the generator is advanced."""
        while self.steps_done < self.steps_per_epoch:
            position, chunk_number = divmod(self.steps_done, len(self.starts))
            span = slice(position * self.batch_size, (position + 1) * self.batch_size)
            batch = self.data.batch(span if self.order is None else self.order[span])
            for start in self.starts[chunk_number:]:
                chunk = batch if self.tbptt is None else batch.chunk(start, start + self.tbptt)
                try:
                    self._step(chunk)
                except Error as error:
                    raise with_location(error, self._where(span)) from error
                self.steps_done += 1
                if start == self.starts[-1]:
                    self.state = None
                yield

    def _step(self, batch):
        """Train on one batch, or on one chunk of it."""
        x, y, lengths, mask = batch
        weight = batch.weight
        if not weight:
            self.state = self.net.forward(x, self.state, lengths=lengths)[1]
            return
        before = self.rng.bit_generator.state
        output, state, saved = self.net.forward(x, self.state, lengths=lengths, training=True, rng=self.rng)
        value, dy = _loss(self.loss, output, y, mask)
        if not math.isfinite(value):
            bits: Any = type(self.rng.bit_generator)()
            bits.state = before
            rng = np.random.Generator(bits)
            raise DivergedError(f"the loss is {value}; {first_wrong(self.net, batch, self.state, rng)}")
        trained = slice(self.parameters.trained)
        gradients = self.parameters.gradients[trained]
        self.parameters.gather(self.net.backward(dy, None, saved, dx=False)[2])
        norm = clipping.norm(gradients) if self.clip_norm is None else clipping.clip_norm(gradients, self.clip_norm)
        if not math.isfinite(norm):
            raise DivergedError(
                f"the loss is {value:.6g}, the gradient of {self.parameters.wrong_gradient()} is not finite"
            )
        if self.clip_value is not None:
            clipping.clip_value(gradients, self.clip_value)
        self.optimizer.step(self.parameters.values[trained], gradients)
        self.parameters.move_buffers()
        self.parameters.load()
        self.state = state
        self.sums["loss"] += value * weight
        for name, metric in self.metrics.items():
            self.sums[name] += _mean(metric(output, y, mask), name) * weight
        self.weight += weight

    def _where(self, span):
        """Describe the current step: epoch, batch, number and examples."""
        indices = np.arange(self.data.count)[span] if self.order is None else self.order[span]
        examples = ", ".join(map(str, indices[:8])) + (" ..." if len(indices) > 8 else "")
        batch = self.steps_done // len(self.starts)
        return (
            f"epoch {self.history.epochs + 1}, batch {batch + 1} of {self.batches}, "
            f"step {self.optimizer.steps + 1} (examples {examples})"
        )

    def means(self):
        """Return the mean loss and metrics of the epoch so far."""
        return {name: value / (self.weight or 1) for name, value in self.sums.items()}

    def end_epoch(self, values, keep_best):
        """Add an epoch's values to the history, and keep the parameters if it is the best one."""
        self.history.append(values)
        self.order_state = None
        self._begin()
        if keep_best and self.history.best_epoch == self.history.epochs - 1:
            self.best = self.parameters.values.copy()


def _evaluate(net, examples, loss, batch_size, metrics, verbose=False):
    """Return the mean loss and metrics by name."""
    sums, total = dict.fromkeys(("loss", *metrics), 0.0), 0
    with progress.make(verbose and examples.count > batch_size) as shown:
        shown.begin("evaluate", -(-examples.count // batch_size))
        for i, batch in enumerate(examples.batches(batch_size)):
            weight = batch.weight
            if weight:
                output = net.forward(batch.x, lengths=batch.lengths)[0]
                sums["loss"] += _loss(loss, output, batch.y, batch.mask)[0] * weight
                for name, metric in metrics.items():
                    sums[name] += _mean(metric(output, batch.y, batch.mask), name) * weight
                total += weight
            shown.advance(i + 1)
    return {name: value / total for name, value in sums.items()}


def _validated(net, examples, run):
    """Return the values of the validation data, their names after "val_"."""
    try:
        values = _evaluate(net, examples, run.loss, run.batch_size, run.metrics)
    except Error as error:
        raise with_location(error, "validation_data") from error
    return {f"val_{name}": value for name, value in values.items()}


def _loss(loss, y, target, mask):
    """Return the value of the loss, as a float, and dy."""
    result = loss(y, target, mask)
    if not isinstance(result, tuple) or len(result) != 2:
        raise InputTypeError(f"loss: gave {_kind(result)}, expected (value, dy)")
    return _mean(result, "loss"), result[1]


def _mean(value, name):
    """Return the result of a metric, or the first of a loss's, as a float, as float32 would be summed in float32."""
    value = value[0] if isinstance(value, tuple) else value
    if np.ndim(value) or not isinstance(value, (numbers.Real, np.ndarray)):
        raise InputTypeError(f"{name}: gave {_kind(value)}, expected a number")
    return float(value)


def _exhausted(history, patience):
    """Return whether `patience` epochs brought no improvement."""
    return patience is not None and history.epochs > 0 and history.epochs - 1 - history.best_epoch >= patience


def _named(value, table, name):
    """Return the object of a name in the table, made with its defaults, and anything but a name as it is."""
    if not isinstance(value, str):
        return value
    if value not in table:
        raise InputError(f"{name}: {value!r} is none of {', '.join(table)}")
    return table[value]()


def _needed(y):
    """Return the targets, which must not be None."""
    if y is None:
        raise InputTypeError("y: got None, expected the targets")
    return y


def _validation(net, data):
    """Return the validation data as Examples."""
    if not isinstance(data, (tuple, list)) or not 2 <= len(data) <= 4:
        raise InputTypeError(
            f"validation_data: got a {type(data).__name__}, expected (x, y), (x, y, lengths) or (x, y, lengths, mask)"
        )
    try:
        return Examples(net, *data)
    except Error as error:
        raise with_location(error, "validation_data") from error


def _metrics(metrics):
    """Return the metrics by name."""
    metrics = (metrics,) if isinstance(metrics, str) or callable(metrics) else metrics
    if not isinstance(metrics, (tuple, list)):
        raise InputTypeError(f"metrics: got {_kind(metrics)}, expected names and callables (y, target, mask)")
    named = {}
    for metric in metrics:
        if isinstance(metric, str) and metric not in METRICS:
            raise InputError(f"metrics: {metric!r} is none of {', '.join(METRICS)}, nor a callable (y, target, mask)")
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
        if name in named or name in ("loss", "learning_rate"):
            raise InputError(f"metrics: another value is called {name!r} already")
        named[name] = METRICS[metric] if isinstance(metric, str) else _callable(metric, "metrics")
    return named


def _callable(value, name):
    """Return a callable, which must not be a class."""
    if not callable(value) or isinstance(value, type):
        raise InputTypeError(f"{name}: got {_kind(value)}, expected a callable (y, target, mask)")
    return value


def _kind(value):
    """Describe a value's type for messages, and tell a class from its objects: parentheses are easily forgotten."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
