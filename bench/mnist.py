"""Training of a model that reads digits row by row: the engines, each in the form that its documentation shows.

The model is LSTM H, LSTM H (last output), Dense 32 with ReLU, Dense 10, with dropout of 0.2 between them. The loss is
the mean cross-entropy, the order of the examples is random, and Adam's rate decays.

build(case, state_dict, threads, dropout, rate) returns fit and weights. fit(x, y) trains for an epoch and returns its
mean loss; with `rate` it takes plain gradient steps of that rate in place of Adam's, in the order of x. weights()
returns a dict of arrays with the names of a Sequential: 0 and 2 are the LSTMs, 4 and 7 the dense layers.
"""

import dataclasses
import pathlib

import numpy as np

from bench import engines, gradients, problem
from bench.cases import Case
from bench.engines import Engine
from bench.measure import compare

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data" / "mnist10k.npz"
ROWS = COLUMNS = 28
DENSE, CLASSES = 32, 10
DROPOUT = 0.2
RATE, DECAY = 1e-3, 1e-6  # the rate of update n is RATE / (1 + DECAY * n)
# The rate of the one gradient step that is checked. It is so large that the rounding of the weights hides little of
# the gradient.
CHECK_RATE = 100.0


def data(images):
    """Return x [images, 28, 28] float32 in 0 to 1 and y [images] int64: digits, or random values without their file."""
    if DATA.exists():
        with np.load(DATA) as stored:
            x, y = stored["images"][:images], stored["labels"][:images]
    else:
        rng = np.random.default_rng(3)
        x, y = rng.integers(0, 256, (images, ROWS, COLUMNS)), rng.integers(0, CLASSES, images)
    return (x / 255).astype(np.float32), y.astype(np.int64)


def weights(case, seed=0):
    """Return weights that are uniform in +-1/sqrt(n), n being H or the number of a dense layer's inputs."""
    rng = np.random.default_rng(seed)
    state_dict = {}
    for position, cell in ((0, _cell(case, COLUMNS)), (2, _cell(case, case.H))):
        state_dict |= {f"{position}.{name}": a for name, a in problem.weights(cell, position).items()}
    for position, (rows, columns) in ((4, (DENSE, case.H)), (7, (CLASSES, DENSE))):
        for name, shape in (("weight", (rows, columns)), ("bias", (rows,))):
            state_dict[f"{position}.{name}"] = rng.uniform(-1, 1, shape).astype(np.float32) * np.float32(columns**-0.5)
    return state_dict


def _cell(case, inputs):
    """Return the case of one of the LSTMs."""
    return Case("cell", "LSTM", ROWS, case.batch, inputs, case.H)


def _part(state_dict, position):
    """Return the weights of the layer at this position."""
    return {name.partition(".")[2]: a for name, a in state_dict.items() if name.startswith(f"{position}.")}


class Torch(Engine):
    name = package = module = "torch"

    def build(self, case, state_dict, threads, dropout, rate):
        import torch
        from torch.nn import functional

        torch.set_num_threads(threads)
        torch.manual_seed(0)

        class Outputs(torch.nn.LSTM):
            def forward(self, x):
                return super().forward(x)[0]

        class LastOutput(torch.nn.LSTM):
            def forward(self, x):
                return super().forward(x)[1][0][0]

        net = torch.nn.Sequential(
            Outputs(COLUMNS, case.H),
            torch.nn.Dropout(dropout),
            LastOutput(case.H, case.H),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(case.H, DENSE),
            torch.nn.ReLU(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(DENSE, CLASSES),
        )
        net.load_state_dict({name: torch.from_numpy(a) for name, a in state_dict.items()})
        if rate is None:
            optimizer = torch.optim.Adam(net.parameters(), RATE, fused=True)
        else:
            optimizer = torch.optim.SGD(net.parameters(), rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + DECAY * n))

        def fit(x, y):
            x, y = torch.from_numpy(x), torch.from_numpy(y)
            order = torch.randperm(len(x)) if rate is None else torch.arange(len(x))
            total = torch.zeros(())
            net.train()
            for batch in order.split(case.batch):
                optimizer.zero_grad(set_to_none=True)
                loss = functional.cross_entropy(net(x[batch].transpose(0, 1)), y[batch])
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach() * len(batch)
            return total.item() / len(x)

        return fit, lambda: {name: a.numpy().copy() for name, a in net.state_dict().items()}


class Keras(Engine):
    """Keras on torch. Its weights are [inputs, outputs], and one bias serves both products of an LSTM."""

    name, package, module = "keras on torch", "keras", "keras"

    def installed(self):
        return super().installed() and engines.ENGINES["torch"].installed()

    def build(self, case, state_dict, threads, dropout, rate):
        import os

        os.environ["KERAS_BACKEND"] = "torch"
        import keras
        import torch

        if keras.backend.backend() != "torch":
            raise RuntimeError(f"keras runs on {keras.backend.backend()} already")
        torch.set_num_threads(threads)
        keras.utils.set_random_seed(0)
        layers = keras.layers
        net = keras.Sequential(
            [
                keras.Input((ROWS, COLUMNS)),
                layers.LSTM(case.H, return_sequences=True),
                layers.Dropout(dropout),
                layers.LSTM(case.H),
                layers.Dropout(dropout),
                layers.Dense(DENSE, activation="relu"),
                layers.Dropout(dropout),
                layers.Dense(CLASSES),
            ]
        )
        values = []
        for position in (0, 2):
            w = _part(state_dict, position)
            values += [w["weight_ih_l0"].T, w["weight_hh_l0"].T, w["bias_ih_l0"] + w["bias_hh_l0"]]
        for position in (4, 7):
            w = _part(state_dict, position)
            values += [w["weight"].T, w["bias"]]
        net.set_weights(values)
        if rate is None:
            schedule = keras.optimizers.schedules.InverseTimeDecay(RATE, decay_steps=1, decay_rate=DECAY)
            optimizer = keras.optimizers.Adam(schedule)
        else:
            optimizer = keras.optimizers.SGD(rate)
        net.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))

        def fit(x, y):
            history = net.fit(x, y, batch_size=case.batch, epochs=1, shuffle=rate is None, verbose=0)
            return history.history["loss"][-1]

        def values_of():
            """Return the weights under torch's names; both of torch's biases move by the gradient of their sum."""
            arrays, found = net.get_weights(), {}
            for position, (w, r, b) in ((0, arrays[:3]), (2, arrays[3:6])):
                old = _part(state_dict, position)
                moved = b - (old["bias_ih_l0"] + old["bias_hh_l0"])
                found |= {
                    f"{position}.weight_ih_l0": w.T,
                    f"{position}.weight_hh_l0": r.T,
                    f"{position}.bias_ih_l0": old["bias_ih_l0"] + moved,
                    f"{position}.bias_hh_l0": old["bias_hh_l0"] + moved,
                }
            for position, (w, b) in ((4, arrays[6:8]), (7, arrays[8:])):
                found |= {f"{position}.weight": w.T, f"{position}.bias": b}
            return found

        return fit, values_of


class Rnnfast(Engine):
    name, package, module = "rnnfast", "rnnfast", "rnnfast.train"

    def build(self, case, state_dict, threads, dropout, rate):
        from rnnfast import nn, train

        net = nn.Sequential(
            nn.LSTM(COLUMNS, case.H, batch_first=True, threads=threads),
            nn.Dropout(dropout),
            nn.LSTM(case.H, case.H, batch_first=True, return_sequences=False, threads=threads),
            nn.Dropout(dropout),
            nn.Linear(case.H, DENSE, threads=threads),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(DENSE, CLASSES, threads=threads),
        )
        net.load_state_dict(state_dict)
        if rate is None:
            optimizer = train.Adam(train.InverseTimeDecay(RATE, DECAY))
        else:
            optimizer = train.SGD(rate)

        def fit(x, y):
            history = net.fit(
                x,
                y,
                loss=train.CrossEntropy(),
                optimizer=optimizer,
                batch_size=case.batch,
                shuffle=rate is None,
                seed=0,
                verbose=False,
            )
            return history["loss"][-1]

        return fit, net.state_dict


ENGINES = {engine.name: engine for engine in (Rnnfast(), Torch(), Keras())}


def measure(case, engines, threads, rounds, duration, limit):
    """Return the results of `compare`: an epoch with Adam and dropout is timed, a plain gradient step is checked."""
    state_dict, (x, y) = weights(case), data(case.images)
    right = expected(case, state_dict, x[: case.batch], y[: case.batch])

    def check(engine):
        fit, values = engine.build(case, state_dict, threads, 0.0, CHECK_RATE)
        fit(x[: case.batch], y[: case.batch])
        moved = {name: (state_dict[name] - a) / np.float32(CHECK_RATE) for name, a in values().items()}
        fit, _ = engine.build(case, state_dict, threads, DROPOUT, None)
        return fit, gradients.difference(moved, right)

    return compare(engines, check, (x, y), threads, rounds, duration, limit)


# ------------------------------------------------------------------------------------------------ right gradients
def expected(case, state_dict, x, y):
    """Return the gradients of all weights for one batch in float64, without dropout."""
    w = {name: a.astype(np.float64) for name, a in state_dict.items()}
    numpy_engine, cells = gradients.ENGINES["numpy"], [_cell(case, COLUMNS), _cell(case, case.H)]
    cells = [dataclasses.replace(cell, B=len(x)) for cell in cells]
    first, second = (numpy_engine.prepare(cell, _part(w, p), 1) for cell, p in zip(cells, (0, 2)))
    x = x.astype(np.float64).swapaxes(0, 1)
    zeros = np.zeros((ROWS, len(y), case.H))
    x1 = first(x, zeros)[0]
    h = second(x1, zeros)[0][-1]
    hidden = np.maximum(h @ w["4.weight"].T + w["4.bias"], 0)
    logits = hidden @ w["7.weight"].T + w["7.bias"]
    d = np.exp(logits - logits.max(1, keepdims=True))
    d /= d.sum(1, keepdims=True)
    d[np.arange(len(y)), y] -= 1
    d /= len(y)
    right = {"7.weight": d.T @ hidden, "7.bias": d.sum(0)}
    d = d @ w["7.weight"] * (hidden > 0)
    right |= {"4.weight": d.T @ h, "4.bias": d.sum(0)}
    dy = zeros
    dy[-1] = d @ w["4.weight"]
    for position, cell, call, inputs in ((2, cells[1], second, x1), (0, cells[0], first, x)):
        found = numpy_engine.named(cell, call(inputs, dy))
        dy = found.pop("dx")
        found.pop("y")
        right |= {f"{position}.{name}": a for name, a in found.items()}
    return right
