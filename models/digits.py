"""Digits: MNIST read row by row, many to one, by LSTM cells (tanh) and by relu cells.

python models/digits.py [options]

writes digits.onnx, digits_relu.onnx and digits.svg; models/digits.md describes the results.
"""

import pathlib
import sys

import click
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rnnfast import nn, train

DATA = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "mnist10k.npz"
UNITS, EPOCHS, BATCH = 128, 12, 64
TEST = 1500
TARGET = {"LSTM (tanh)": 0.96, "RNN (relu)": 0.94}
"""Least shares of the test digits that must be read right."""
RATES = {"LSTM (tanh)": 0.003, "RNN (relu)": 0.001, "one dense layer": 0.002}
"""Adam's learning rates at the first step; they fall to 0 on half a cosine."""


def read(path):
    """Return images [n, 28, 28], float32 from 0 to 1, and labels [n]."""
    if not path.is_file():
        raise click.ClickException(f"{path} is not there; --data FILE takes an npz file with images and labels")
    with np.load(path) as file:
        return file["images"].astype(np.float32) / 255, file["labels"].astype(np.int64)


def lstm(inputs, **options):
    """Return a layer of LSTM cells."""
    return nn.LSTM(inputs, UNITS, batch_first=True, **options)


def irnn(inputs, **options):
    """Return a layer of relu cells that begins as h' = relu(W x + h).

    Its recurrent weights begin as the identity, so that h and the gradient are passed on unchanged (Le, Jaitly and
    Hinton, 2015).
    """
    layer = nn.RNN(inputs, UNITS, nonlinearity="relu", batch_first=True, **options)
    zeros = np.zeros(UNITS, np.float32)
    layer.load_state_dict(
        layer.state_dict() | {"weight_hh_l0": np.eye(UNITS, dtype=np.float32), "bias_ih_l0": zeros, "bias_hh_l0": zeros}
    )
    return layer


def reader(cell, threads, rng):
    """Return a network that takes a row of 28 pixels at each step and makes ten logits of the last step's output."""
    return nn.Sequential(
        cell(28, threads=threads, rng=rng),
        nn.Dropout(0.2),
        cell(UNITS, return_sequences=False, threads=threads, rng=rng),
        nn.Dropout(0.1),
        nn.Linear(UNITS, 32, rng=rng),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(32, 10, rng=rng),
    )


def trained(net, x, y, rate, epochs, seed):
    """Train a network and return its history.

    The weights are those after the last epoch: nothing is chosen by the test digits.
    """
    steps = epochs * -(-(len(x) - TEST) // BATCH)
    return net.fit(
        x[:-TEST],
        y[:-TEST],
        loss=train.CrossEntropy(),
        metrics="accuracy",
        epochs=epochs,
        batch_size=BATCH,
        optimizer=train.Adam(train.CosineDecay(rate, steps)),
        clip_norm=1.0,
        seed=seed,
        validation_data=(x[-TEST:], y[-TEST:]),
    )


def draw(histories, images, labels, found, path):
    """Draw the learning curves of all networks, and digits that the LSTM misreads."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5, 4))
    panel = left.subplots()
    for (name, history), colour in zip(histories.items(), ("tab:blue", "tab:orange", "tab:gray")):
        epochs = range(1, history.epochs + 1)
        panel.plot(epochs, history["val_accuracy"], "o-", markersize=3, color=colour, label=f"{name}, test")
        panel.plot(epochs, history["accuracy"], ":", color=colour, label=f"{name}, training")
    panel.set(xlabel="epoch", ylabel="accuracy", ylim=(0.8, 1.0))
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize=8)
    wrong = np.flatnonzero(found != labels)
    for panel, place in zip(right.subplots(3, 5).flat, [*wrong, *[None] * 15]):
        panel.axis("off")
        if place is not None:
            panel.imshow(images[place], cmap="gray_r")
            panel.set_title(f"{labels[place]}, read as {found[place]}", fontsize=7)
    right.suptitle(f"{min(len(wrong), 15)} of the {len(wrong)} that the LSTM misreads", fontsize=10)
    with matplotlib.rc_context({"svg.hashsalt": "rnnfast", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


@click.command(help=__doc__.splitlines()[0], context_settings={"show_default": True})
@click.option(
    "--data",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    default=DATA,
    show_default=False,
    help=f"An npz file with images [n, 28, 28] uint8 and labels [n]; the last {TEST} are for the test.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default=pathlib.Path(__file__).parent,
    help="The folder to write into.",
)
@click.option("--epochs", default=EPOCHS)
@click.option("--seed", default=0)
@click.option("--threads", default=2)
def main(data, out, epochs, seed, threads):
    """Train the networks, save them and compare them on the test digits."""
    x, y = read(data)
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    networks = {
        "LSTM (tanh)": reader(lstm, threads, rng),
        "RNN (relu)": reader(irnn, threads, rng),
        "one dense layer": nn.Sequential(nn.Linear(28 * 28, 10, rng=rng)),
    }
    histories = {}
    for name, net in networks.items():
        seen = x.reshape(len(x), -1) if name not in TARGET else x
        histories[name] = trained(net, seen, y, RATES[name], epochs, seed)
    networks["LSTM (tanh)"].save(out / "digits.onnx")
    networks["RNN (relu)"].save(out / "digits_relu.onnx")
    found = networks["LSTM (tanh)"].predict(x[-TEST:]).argmax(1)
    draw(histories, x[-TEST:], y[-TEST:], found, out / "digits.svg")

    print(f"{len(x) - TEST} digits for training, {TEST} for the test")
    print(f"{'':26}{'parameters':>12}{'training':>12}{'test':>12}")
    for name, history in histories.items():
        parameters = sum(a.size for a in networks[name].state_dict().values())
        print(f"{name:26}{parameters:12,}{history['accuracy'][-1]:12.1%}{history['val_accuracy'][-1]:12.1%}")
    if any(histories[name]["val_accuracy"][-1] < least for name, least in TARGET.items()):
        sys.exit(f"less than {TARGET}")


if __name__ == "__main__":
    main()
