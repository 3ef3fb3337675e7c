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
from rnnfast.train.callbacks import Callbacks
from rnnfast.train.examples import Batches, Examples, are_batches
from rnnfast.train.history import History
from rnnfast.train.losses import MAE, MSE, BinaryCrossEntropy, CrossEntropy, Huber
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
    "huber": Huber,
    "mae": MAE,
    "mse": MSE,
}
OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "rmsprop": RMSprop, "sgd": SGD}
METRICS: dict[str, Callable[..., Any]] = {"accuracy": accuracy, "mae": MAE(), "mse": MSE()}


@raises_limit_error
def fit(
    net: Module,
    x: Any,
    y: Any = None,
    *,
    loss: Loss | str,
    optimizer: Optimizer | str,
    epochs: int = 1,
    batch_size: int = 32,
    lengths: Any = None,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: Mapping[int, float] | ArrayLike | None = None,
    validation_data: Any = None,
    validation_split: float | None = None,
    shuffle: bool = True,
    seed: Seed = None,
    metrics: Metrics = (),
    callbacks: Any = (),
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
            list of arrays [time, ...] of different lengths is padded with zeros, and gives the lengths. Without y, x
            gives batches: an iterable of (x, y), (x, y, lengths) or (x, y, lengths, mask), such as a DataLoader of
            torch, that is iterated for each epoch, or a function that returns one, such as a generator. Then
            batch_size and shuffle do not apply, and lengths, mask, sample_weight, validation_split, tbptt and
            checkpoint_every are refused.
        y: The targets, as the loss takes them: [examples, ...], or [examples, time, ...] if the network has an output
            for each time step; then a list of arrays of the lengths of x may be given. For outputs [..., 1], losses
            that compare numbers take [...] too.
        loss: A loss: `loss(y, target, mask)` returns (value, dy); or the name of one of `rnnfast.train`: "mse", "mae",
            "huber", "cross_entropy" or "binary_cross_entropy".
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
        validation_data: (x, y), (x, y, lengths) or (x, y, lengths, mask), to evaluate after each epoch; or what gives
            batches of these, as x does.
        shuffle: Whether to shuffle the examples of each epoch.
        seed: A seed or a numpy Generator for shuffling and dropout; the same seed gives the same bits.
        metrics: One or a list: "accuracy", "mae", "mse", or callables `metric(y, target, mask)` that return a mean,
            such as a loss.
        callbacks: One or a list: objects with the methods of `rnnfast.train.Callback`, which are called after batches
            and epochs and may change the learning rate or end the training.
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
        UnsupportedError: A layer has no gradient or is quantised, or a checkpoint is asked for and safetensors is not
            installed.
    """
    net.refuse_training()
    loss, optimizer = _named(loss, LOSSES, "loss"), _named(optimizer, OPTIMIZERS, "optimizer")
    ignore_index = getattr(loss, "ignore_index", None)
    examples: Any
    if y is None and are_batches(x):
        refused = {"lengths": lengths, "mask": mask, "sample_weight": sample_weight, "tbptt": tbptt}
        refused |= {"validation_split": validation_split, "checkpoint_every": checkpoint_every}
        for name, value in refused.items():
            if value is not None:
                raise InputError(f"{name}: x gives batches, expected None")
        examples = Batches(net, x, "x", class_weight=class_weight, ignore_index=ignore_index)
    else:
        examples = Examples(net, x, _needed(y), lengths, mask, sample_weight, class_weight, ignore_index)
    validation = None if validation_data is None else _validation(net, validation_data, ignore_index)
    if validation_split is not None:
        if validation is not None:
            raise InputError("validation_split: given beside validation_data, expected one of them")
        examples, validation = examples.split(check_number(validation_split, "validation_split", 0.0, 1.0))
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
    called = Callbacks(callbacks, run)
    stop = False
    with np.errstate(all="ignore"), progress.make(verbose) as shown:
        while history.epochs < epochs and not stop and not _exhausted(history, patience):
            run.begin_epoch()
            shown.begin(f"epoch {history.epochs + 1}/{epochs}", run.expected_steps(), run.steps_done)
            for _ in run.steps():
                shown.advance(run.steps_done, run.means)
                if called.call("on_batch_end", run.means):
                    break
                if every and run.optimizer.steps % every == 0:
                    checkpoints.save(path, run)
            if not run.weight:
                raise InputError("mask: nothing is left of all examples")
            values = run.means() | {"learning_rate": run.optimizer.rate()}
            if validation is not None:
                values |= _validated(net, validation, run)
                if not math.isfinite(values["val_loss"]):
                    raise DivergedError(
                        f"epoch {history.epochs + 1}: the loss of validation_data is {values['val_loss']}"
                    )
            run.end_epoch(values, keep_best)
            shown.end(values)
            stop = called.call("on_epoch_end", lambda values=values: dict(values))
            if path is not None:
                checkpoints.save(path, run)
    history.stopped = stop or _exhausted(history, patience)
    if keep_best and run.best is not None:
        run.parameters.values[:] = run.best
        run.parameters.load()
    return history


@raises_limit_error
def evaluate(
    net: Module,
    x: Any,
    y: Any = None,
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
    loss = _callable(_named(loss, LOSSES, "loss"), "loss")
    ignore_index = getattr(loss, "ignore_index", None)
    examples: Any
    if y is None and are_batches(x):
        for name, value in (("lengths", lengths), ("mask", mask)):
            if value is not None:
                raise InputError(f"{name}: x gives batches, expected None")
        examples = Batches(net, x, "x", ignore_index=ignore_index)
    else:
        examples = Examples(net, x, _needed(y), lengths, mask, ignore_index=ignore_index)
    return _evaluate(net, examples, loss, check_size(batch_size, "batch_size"), _metrics(metrics), verbose)


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
        self.batches = None if data.count is None else -(-data.count // self.batch_size)
        self.steps_per_epoch = None if self.batches is None else self.batches * len(self.starts)

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
        self.order = self.rng.permutation(self.data.count) if self.shuffle and self.batches is not None else None
        if resumed:
            self.rng.bit_generator.state = now

    def steps(self):
        """Run the remaining steps of the epoch, one each time that the generator is advanced."""
        for batch, span in self._remaining_batches():
            for start in self.starts[self.steps_done % len(self.starts) :]:
                chunk = batch if self.tbptt is None else batch.chunk(start, start + self.tbptt)
                try:
                    self._step(chunk)
                except Error as error:
                    raise with_location(error, self._where(span)) from error
                self.steps_done += 1
                if start == self.starts[-1]:
                    self.state = None
                yield

    def _remaining_batches(self):
        """Yield the batches of the epoch that are not done, and the span of their examples, or None."""
        if self.batches is None:
            for batch in self.data.batches():
                yield batch, None
            return
        for position in range(self.steps_done // len(self.starts), self.batches):
            span = slice(position * self.batch_size, (position + 1) * self.batch_size)
            yield self.data.batch(span if self.order is None else self.order[span]), span

    def expected_steps(self):
        """Return the number of steps of an epoch, or None."""
        return _number_of_batches(self.data, self.batch_size) if self.batches is None else self.steps_per_epoch

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
        if span is None:
            place = f"epoch {self.history.epochs + 1}, batch {self.steps_done + 1}"
            return f"{place}, step {self.optimizer.steps + 1}"
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
    count = _number_of_batches(examples, batch_size)
    with progress.make(verbose and count != 1) as shown:
        shown.begin("evaluate", count)
        for i, batch in enumerate(examples.batches(batch_size)):
            weight = batch.weight
            if weight:
                output = net.forward(batch.x, lengths=batch.lengths)[0]
                sums["loss"] += _loss(loss, output, batch.y, batch.mask)[0] * weight
                for name, metric in metrics.items():
                    sums[name] += _mean(metric(output, batch.y, batch.mask), name) * weight
                total += weight
            shown.advance(i + 1)
    if not total:
        raise InputError("mask: nothing is left of all examples")
    return {name: value / total for name, value in sums.items()}


def _number_of_batches(data, size):
    """Return how many batches there are, or None if that is not known."""
    if data.count is not None:
        return -(-data.count // size)
    try:
        return len(data)
    except TypeError:
        return None


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


def _validation(net, data, ignore_index):
    """Return the validation data as Examples or Batches."""
    if are_batches(data):
        return Batches(net, data, "batches", ignore_index=ignore_index)
    if not isinstance(data, (tuple, list)) or not 2 <= len(data) <= 4:
        raise InputTypeError(
            f"validation_data: got a {type(data).__name__}, expected (x, y), (x, y, lengths) or (x, y, lengths, mask)"
        )
    try:
        return Examples(net, *data, ignore_index=ignore_index)
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
