"""fit, evaluate and predict: any network with `forward` and `backward`, examples along the first axis of all arrays."""

import math
import numbers

import numpy as np

from rnnfast.errors import DivergedError, Error, InputError, InputTypeError, ModelError, with_location
from rnnfast.nn.checks import as_generator, check_flag, check_number, check_size
from rnnfast.train import checkpoint as checkpoints
from rnnfast.train import clipping, progress
from rnnfast.train.examples import Examples
from rnnfast.train.history import History
from rnnfast.train.metrics import accuracy
from rnnfast.train.optimizers import Optimizer
from rnnfast.train.parameters import Parameters
from rnnfast.train.trace import first_wrong

METRICS = {"accuracy": accuracy}


def fit(
    net,
    x,
    y,
    *,
    loss,
    optimizer,
    epochs=1,
    batch_size=32,
    lengths=None,
    mask=None,
    validation_data=None,
    shuffle=True,
    seed=None,
    metrics=(),
    clip_norm=None,
    clip_value=None,
    tbptt=None,
    patience=None,
    restore_best=True,
    checkpoint=None,
    checkpoint_every=None,
    resume=False,
    verbose=True,
):
    """Train `net` -> History.

    x: what the network takes, [examples, ...]; with recurrent layers [examples, time, ...], and these batch_first.
    y: the targets, as the loss takes them, [examples, ...] or, where the network gives an output for each step,
        [examples, time, ...].
    lengths: [examples], how many steps of each count; for a tuple x a tuple with those of each array, or None, of which
        the last are those of y. mask: bool, of y's shape or of its first axes, which elements the loss and the metrics
        count; None is all, or those within the lengths where y has a time axis.
    loss: `loss(y, target, mask)` -> (value, dy). optimizer: an Optimizer; one that was used before goes on.
    validation_data: (x, y), (x, y, lengths) or (x, y, lengths, mask), which `evaluate` gets after each epoch.
    seed: of the one generator that shuffles the examples and drops out: an integer, or a numpy Generator. The same seed
        gives the same bits.
    metrics: "accuracy", or callables `metric(y, target, mask)` -> a mean, losses among them; one or a list.
    clip_norm, clip_value: bounds for the norm of all gradients together, and for each of them.
    tbptt: truncated back-propagation through time: a step of the optimiser for each `tbptt` time steps; the state goes
        on to the next ones, the gradient does not.
    patience: stop when so many epochs brought no smaller "val_loss" ("loss" without validation data); restore_best: at
        the end take the weights of the best epoch (with patience only).
    checkpoint: a file (safetensors) that is written after each epoch, and also after every `checkpoint_every` steps;
        resume=True goes on from it, if it is there, to the same bits as without the interruption.
    verbose: show progress on a terminal.

    Values of an epoch are means over its batches as they were trained. A batch, or chunk of tbptt, in which the mask
    leaves nothing makes no step.

    Raises DivergedError when the loss or a gradient is NaN or infinite: it names the step and the first layer whose
    output is. The network then has the weights from before that step. InputError and InputTypeError for data that do
    not fit; UnsupportedError for layers without gradients, or where safetensors is not installed.
    """
    run = Run(
        net,
        Examples(net, x, _needed(y), lengths, mask),
        loss,
        optimizer,
        batch_size,
        shuffle,
        seed,
        metrics,
        clip_norm,
        clip_value,
        tbptt,
    )
    epochs = check_size(epochs, "epochs")
    patience = None if patience is None else check_size(patience, "patience")
    every = None if checkpoint_every is None else check_size(checkpoint_every, "checkpoint_every")
    keep_best = check_flag(restore_best, "restore_best") and patience is not None
    validation = None if validation_data is None else _validation(net, validation_data)
    if checkpoint is not None:
        checkpoint = checkpoints.check(checkpoint)
    elif resume or every:
        raise InputError(f"{'resume' if resume else 'checkpoint_every'}: needs checkpoint, a file")
    if resume and checkpoint.exists():
        checkpoints.restore(checkpoint, run)
        if keep_best and run.best is None and run.history.epochs:
            raise ModelError(
                f"{checkpoint}: has no weights of a best epoch, as its training had no patience; expected "
                "restore_best=False"
            )

    history = run.history
    with np.errstate(all="ignore"), progress.make(verbose) as shown:
        while history.epochs < epochs and not _exhausted(history, patience):
            run.begin_epoch()
            shown.begin(f"epoch {history.epochs + 1}/{epochs}", run.steps_per_epoch, run.steps_done)
            for _ in run.steps():
                shown.advance(run.steps_done, run.means)
                if every and optimizer.steps % every == 0:
                    checkpoints.save(checkpoint, run)
            values = run.means() | {"learning_rate": optimizer.rate()}
            if validation is not None:
                values |= _validated(net, validation, loss, run)
                if not math.isfinite(values["val_loss"]):
                    raise DivergedError(
                        f"epoch {history.epochs + 1}: the loss of validation_data is {values['val_loss']}"
                    )
            run.end_epoch(values, keep_best)
            shown.end(values)
            if checkpoint is not None:
                checkpoints.save(checkpoint, run)
    history.stopped = _exhausted(history, patience)
    if keep_best and run.best is not None:
        run.parameters.values[:] = run.best
        run.parameters.load()
    return history


def evaluate(net, x, y, *, loss, batch_size=256, lengths=None, mask=None, metrics=(), verbose=True):
    """-> {"loss": ..., and each metric}: means over all elements that count. The arguments are those of `fit`."""
    return _evaluate(
        net,
        Examples(net, x, _needed(y), lengths, mask),
        _callable(loss, "loss"),
        check_size(batch_size, "batch_size"),
        _metrics(metrics),
        verbose,
    )


def predict(net, x, *, batch_size=256, lengths=None, verbose=True):
    """What the network gives for all examples, [examples, ...], computed `batch_size` at a time. verbose: show progress
    on a terminal, if there is more than one batch."""
    examples, outputs = Examples(net, x, None, lengths), []
    size = check_size(batch_size, "batch_size")
    with progress.make(verbose and examples.count > size) as shown:
        shown.begin("predict", -(-examples.count // size))
        for batch in examples.batches(size):
            outputs.append(net.forward(batch.x, lengths=batch.lengths)[0])
            shown.advance(len(outputs))
    return np.concatenate(outputs)


class Run:
    """Training under way: all that a checkpoint holds, and one step."""

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
        optimizer.check(self.parameters.values.size)
        self.rng = as_generator(seed, "seed")
        self.history = History()
        self.best = None  # values of the best epoch
        self.order_state = None  # the generator's, from before the examples of this epoch were shuffled
        self._begin()

    def _begin(self):
        self.steps_done = 0  # of this epoch
        self.state = None  # what the next chunk of the batch begins with
        self.sums, self.weight = dict.fromkeys(("loss", *self.metrics), 0.0), 0

    def begin_epoch(self):
        """The order of the examples; one that was interrupted is drawn again, with the generator as it was then."""
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
        """Does the rest of the epoch, step by step."""
        while self.steps_done < self.steps_per_epoch:
            position, part = divmod(self.steps_done, len(self.starts))
            places = slice(position * self.batch_size, (position + 1) * self.batch_size)
            batch = self.data.batch(places if self.order is None else self.order[places])
            for start in self.starts[part:]:
                chunk = batch if self.tbptt is None else batch.chunk(start, start + self.tbptt)
                try:
                    self._step(chunk)
                except Error as error:
                    raise with_location(error, self._where(places)) from error
                self.steps_done += 1
                if start == self.starts[-1]:
                    self.state = None
                yield

    def _step(self, batch):
        x, y, lengths, mask = batch
        weight = batch.weight
        if not weight:
            self.state = self.net.forward(x, self.state, lengths=lengths)[1]
            return
        before = self.rng.bit_generator.state
        output, state, saved = self.net.forward(x, self.state, lengths=lengths, training=True, rng=self.rng)
        value, dy = _loss(self.loss, output, y, mask)
        if not math.isfinite(value):
            rng = np.random.Generator(type(self.rng.bit_generator)())
            rng.bit_generator.state = before
            raise DivergedError(f"the loss is {value}; {first_wrong(self.net, batch, self.state, rng)}")
        gradients = self.parameters.gradients
        self.parameters.gather(self.net.backward(dy, None, saved, dx=False)[2])
        norm = clipping.norm(gradients) if self.clip_norm is None else clipping.clip_norm(gradients, self.clip_norm)
        if not math.isfinite(norm):
            raise DivergedError(
                f"the loss is {value:.6g}, the gradient of {self.parameters.wrong_gradient()} is not finite"
            )
        if self.clip_value is not None:
            clipping.clip_value(gradients, self.clip_value)
        self.optimizer.step(self.parameters.values, gradients)
        self.parameters.load()
        self.state = state
        self.sums["loss"] += value * weight
        for name, metric in self.metrics.items():
            self.sums[name] += _mean(metric(output, y, mask), name) * weight
        self.weight += weight

    def _where(self, places):
        of_batch = np.arange(self.data.count)[places] if self.order is None else self.order[places]
        told = ", ".join(map(str, of_batch[:8])) + (" ..." if len(of_batch) > 8 else "")
        batch = self.steps_done // len(self.starts)
        return (
            f"epoch {self.history.epochs + 1}, batch {batch + 1} of {self.batches}, "
            f"step {self.optimizer.steps + 1} (examples {told})"
        )

    def means(self):
        """Of the epoch so far."""
        return {name: value / max(1, self.weight) for name, value in self.sums.items()}

    def end_epoch(self, values, keep_best):
        self.history.append(values)
        self.order_state = None
        self._begin()
        if keep_best and self.history.best_epoch == self.history.epochs - 1:
            self.best = self.parameters.values.copy()


def _evaluate(net, examples, loss, batch_size, metrics, verbose=False):
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


def _validated(net, examples, loss, run):
    try:
        values = _evaluate(net, examples, loss, run.batch_size, run.metrics)
    except Error as error:
        raise with_location(error, "validation_data") from error
    return {f"val_{name}": value for name, value in values.items()}


def _loss(loss, y, target, mask):
    """-> value, a float, and dy"""
    given = loss(y, target, mask)
    if not isinstance(given, tuple) or len(given) != 2:
        raise InputTypeError(f"loss: gave {_kind(given)}, expected (value, dy)")
    return _mean(given, "loss"), given[1]


def _mean(value, name):
    """What a metric gave, or the first of what a loss did, as a float: a float32 would sum up as such."""
    value = value[0] if isinstance(value, tuple) else value
    if np.ndim(value) or not isinstance(value, (numbers.Real, np.ndarray)):
        raise InputTypeError(f"{name}: gave {_kind(value)}, expected a number")
    return float(value)


def _exhausted(history, patience):
    return patience is not None and history.epochs > 0 and history.epochs - 1 - history.best_epoch >= patience


def _needed(y):
    if y is None:
        raise InputTypeError("y: got None, expected the targets")
    return y


def _validation(net, data):
    if not isinstance(data, (tuple, list)) or not 2 <= len(data) <= 4:
        raise InputTypeError(
            f"validation_data: got a {type(data).__name__}, expected (x, y), (x, y, lengths) or (x, y, lengths, mask)"
        )
    try:
        return Examples(net, *data)
    except Error as error:
        raise with_location(error, "validation_data") from error


def _metrics(metrics):
    """Name -> metric."""
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
    if not callable(value) or isinstance(value, type):
        raise InputTypeError(f"{name}: got {_kind(value)}, expected a callable (y, target, mask)")
    return value


def _kind(value):
    """What received, for messages: a class is often an object of it without its parentheses."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
