"""How far gradients flow back through time: RNN, GRU and LSTM, untrained and trained, with and without clipping.

python models/gradient_flow.py [FOLDER]

writes two pictures and prints a table in under a minute. The task is the adding problem (Hochreiter and Schmidhuber,
1997): of 40 random numbers two are marked, one in each half; the answer, wanted after the last number, is their sum.
This needs matplotlib; gradient_flow.md describes the pictures.
"""

import pathlib
import sys

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rnnfast import nn, plot, train

T, H, CLIP = 40, 32, 1.0
EXAMPLES = 64_000


def adding(count, rng):
    """Return x [count, T, 2], numbers and marks, and y [count, 1], the sum of the two marked numbers."""
    x = np.zeros((count, T, 2), np.float32)
    x[:, :, 0] = rng.random((count, T))
    marked = np.stack([rng.integers(T // 2, size=count), rng.integers(T // 2, T, size=count)], axis=1)
    np.put_along_axis(x[:, :, 1], marked, 1.0, axis=1)
    return x, np.take_along_axis(x[:, :, 0], marked, axis=1).sum(axis=1, keepdims=True)


def rnn_large(rng):
    """Return a relu layer whose recurrent weights are so large that the gradient grows at each step back."""
    layer = nn.RNN(2, H, nonlinearity="relu", batch_first=True, return_sequences=False, rng=rng)
    large = rng.standard_normal((H, H), dtype=np.float32) * np.float32(2.2 / np.sqrt(H))
    layer.load_state_dict(layer.state_dict() | {"weight_hh_l0": large})
    return layer


def lstm_open(rng):
    """Return an LSTM whose forget gate begins open, by a bias of 1 (Gers, Schmidhuber and Cummins, 2000)."""
    layer = nn.LSTM(2, H, batch_first=True, return_sequences=False, rng=rng)
    biases = layer.state_dict()["bias_ih_l0"].copy()
    biases[H : 2 * H] = 1.0  # gates stand in the order i, f, g, o
    layer.load_state_dict(layer.state_dict() | {"bias_ih_l0": biases})
    return layer


LAYERS = {
    "RNN tanh": lambda rng: nn.RNN(2, H, batch_first=True, return_sequences=False, rng=rng),
    "RNN relu, large weights": rnn_large,
    "GRU": lambda rng: nn.GRU(2, H, batch_first=True, return_sequences=False, rng=rng),
    "LSTM": lambda rng: nn.LSTM(2, H, batch_first=True, return_sequences=False, rng=rng),
    "LSTM, forget bias 1": lstm_open,
}


def main(folder=pathlib.Path(__file__).parent):
    """Train every layer with and without clipping, print the table and draw the pictures."""
    rng = np.random.default_rng(0)
    x, y = adding(EXAMPLES, rng)
    test_x, test_y = adding(1000, rng)
    shown = test_x[:32]
    layers = {name: make(np.random.default_rng(1)) for name, make in LAYERS.items()}

    def trained(clip):
        """Return the trained layers and their errors."""
        trained, errors = {}, {}
        for name, make in LAYERS.items():
            net = nn.Sequential(make(np.random.default_rng(1)), nn.Linear(H, 1, rng=2))
            train.fit(net, x, y, loss=train.MSE(), optimizer=train.Adam(0.01), batch_size=32, clip_norm=clip, seed=3)
            trained[name] = net.layers[0]
            errors[name] = train.evaluate(net, test_x, test_y, loss=train.MSE())["loss"]
        return trained, errors

    untrained = {name: make(np.random.default_rng(1)) for name, make in LAYERS.items()}
    clipped, errors = trained(CLIP)
    _, errors_without = trained(None)

    reach = [
        {name: np.median(plot.gradient_norms(layer, shown).state[-1]) for name, layer in layers.items()}
        for layers in (untrained, clipped)
    ]
    print(
        f"gradient of the state, {T - 1} steps back; mean squared error (the mean as the answer has "
        f"{np.var(test_y):.3f})"
    )
    print(f"{'':23}{'untrained':>12}{'trained':>12}{'error':>12}{'not clipped':>14}")
    for name in LAYERS:
        print(f"{name:23}{reach[0][name]:12.1e}{reach[1][name]:12.1e}{errors[name]:12.4f}{errors_without[name]:14.4g}")

    page = Figure(figsize=(9, 7), layout="constrained")
    for part, title, layers in zip(page.subfigures(2, 1), ("untrained", "trained"), (untrained, clipped)):
        plot.gradient_flow(layers, shown, clip=CLIP, figure=part)
        part.suptitle(title, fontsize=11, x=0.01, ha="left", weight="bold")
    gates = plot.gates(clipped["GRU"], shown[1], labels=["*" if mark else "" for mark in shown[1, :, 1]])
    with matplotlib.rc_context({"svg.hashsalt": "rnnfast", "svg.fonttype": "none"}):
        for name, figure in (("gradient_flow", page), ("gradient_flow_gates", gates)):
            figure.savefig(pathlib.Path(folder) / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
