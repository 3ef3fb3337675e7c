"""Forecasting: the carbon dioxide over Mauna Loa one month and twelve months ahead, by an LSTM on monthly changes.

python models/forecast.py [options]

writes forecast.onnx and forecast.svg in a few seconds; models/forecast.md describes the results.
"""

import importlib.util
import pathlib
import sys

import click
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import rnnfast
from rnnfast import nn, train

HIDDEN, EPOCHS, TBPTT, RATE = 32, 100, 24, 0.01
SEASON = AHEAD = 12
TEST = 120
TARGET = {"one month": 0.25, "12 months": 0.5}
"""Mean absolute scaled errors (MASE) to reach, one month ahead and over all 12 months ahead."""


def read(path=None):
    """Return the series, one number a month, and the year in which it begins."""
    if path is not None:
        return np.loadtxt(path), 0
    package = importlib.util.find_spec("pycwt")
    if package is None:
        raise click.ClickException(
            "the series is in the package pycwt, which is not installed: pip install pycwt; or --data FILE"
        )
    values = np.loadtxt(pathlib.Path(package.origin).parent / "sample" / "mauna.dat")
    return values[12:], 1959  # some months of 1958 were not measured


def trained(changes, epochs, tbptt, seed, threads):
    """Train with teacher forcing: each month's input is the true change of the month before.

    The series is one row of a batch, in chunks of `tbptt` months; the state is carried from chunk to chunk.
    """
    mean, scale = changes.mean(), changes.std()
    x = ((changes - mean) / scale).astype(np.float32)[None, :, None]
    rng = np.random.default_rng(seed)
    net = nn.Sequential(nn.LSTM(1, HIDDEN, batch_first=True, threads=threads, rng=rng), nn.Linear(HIDDEN, 1, rng=rng))
    steps = epochs * -(-(x.shape[1] - 1) // tbptt)
    net.fit(
        x[:, :-1],
        x[:, 1:],
        loss=train.MSE(),
        optimizer=train.Adam(train.CosineDecay(RATE, steps)),
        epochs=epochs,
        batch_size=1,
        tbptt=tbptt,
        clip_norm=1.0,
        seed=rng,
    )
    weights = net.state_dict()  # mean and scale are folded into the weights, so that x and y are unscaled changes
    weights["0.bias_ih_l0"] = weights["0.bias_ih_l0"] - weights["0.weight_ih_l0"][:, 0] * np.float32(mean / scale)
    weights["0.weight_ih_l0"] = weights["0.weight_ih_l0"] / np.float32(scale)
    weights["1.weight"] = weights["1.weight"] * np.float32(scale)
    weights["1.bias"] = weights["1.bias"] * np.float32(scale) + np.float32(mean)
    net.load_state_dict(weights)
    return net


def forecasts(session, series, first):
    """Return the levels forecast from each month on, beginning at `first`: [months, AHEAD].

    Each forecast knows all true levels until its month. session: an InferenceSession of forecast.onnx, of rnnfast or
    onnxruntime.
    """

    def run(x, *state):
        return session.run(None, {"x": x, **dict(zip(("h0", "c0"), state, strict=True))})

    changes = np.diff(series).astype(np.float32)[None, :, None]
    zeros = np.zeros((1, 1, HIDDEN), np.float32)
    _, *state = run(changes[:, : first - 1], zeros, zeros)
    after = []  # the output and the state after each month, with the true changes as inputs
    for month in range(first, len(series)):
        y, *state = run(changes[:, month - 1 : month], *state)
        after.append((y, *state))
    y, h, c = (np.concatenate(values, axis) for values, axis in zip(zip(*after), (0, 1, 1)))
    ahead = [y]  # from here on forecasts are the inputs, for all months at once
    while len(ahead) < AHEAD:
        y, h, c = run(y, h, c)
        ahead.append(y)
    return series[first:, None] + np.cumsum(np.concatenate(ahead, 1)[:, :, 0], 1)


def compared(session, series):
    """Return the forecasts by name, the truth among them, and the error that is 1 on the scale of MASE.

    The forecasts are [months, AHEAD], from each month of the test years except the last. The error is that of the
    seasonal naive forecast before the test years.
    """
    first = len(series) - TEST - 1
    truth = np.lib.stride_tricks.sliding_window_view(series[first + 1 :], AHEAD)
    year = np.lib.stride_tricks.sliding_window_view(series[first - SEASON : -AHEAD], SEASON + 1)
    return {
        "truth": truth,
        "seasonal naive": year[:, 1:],
        "seasonal naive and the last year's growth": year[:, 1:] + year[:, -1:] - year[:, :1],
        "LSTM": forecasts(session, series, first)[: len(truth)],
    }, np.abs(series[SEASON : first + 1] - series[: first + 1 - SEASON]).mean()


def draw(series, year, found, path):
    """Draw forecasts of whole years, and the mean error for each number of months ahead."""
    months = year + np.arange(len(series)) / 12
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    above.plot(months[-TEST - SEASON :], series[-TEST - SEASON :], color="black", linewidth=1, label="truth")
    for i, start in enumerate(range(0, len(found["truth"]), SEASON)):
        at = months[-TEST:][start : start + AHEAD]
        for name, colour in (("seasonal naive", "tab:orange"), ("LSTM", "tab:blue")):
            above.plot(
                at, found[name][start], color=colour, linewidth=1.6, label=f"{name}, 12 months" if not i else None
            )
    above.set(
        title=f"The last {TEST // 12} years, which training has not seen; forecasts for a year, made before it begins",
        xlabel="year",
        ylabel="ppm" if year else None,
    )
    for (name, values), colour in zip([*found.items()][1:], ("tab:orange", "tab:green", "tab:blue")):
        below.plot(
            range(1, AHEAD + 1), np.abs(values - found["truth"]).mean(0), "o-", markersize=3, color=colour, label=name
        )
    below.set(xlabel="months ahead", ylabel="mean absolute error", ylim=(0, None))
    for panel in (above, below):
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "rnnfast", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


@click.command(help=__doc__.splitlines()[0], context_settings={"show_default": True})
@click.option("--data", type=click.Path(exists=True, dir_okay=False), help="A text file, one number for each month.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default=pathlib.Path(__file__).parent,
    help="The folder to write into.",
)
@click.option("--epochs", default=EPOCHS)
@click.option("--tbptt", default=TBPTT, help="Months of truncated back-propagation through time.")
@click.option("--seed", default=0)
@click.option("--threads", default=2)
def main(data, out, epochs, tbptt, seed, threads):
    """Train the network, save it and compare its forecasts with naive ones."""
    series, year = read(data)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "forecast.onnx"
    trained(np.diff(series[:-TEST]), epochs, tbptt, seed, threads).save(path, states=True)
    found, scale = compared(rnnfast.InferenceSession(path), series)
    draw(series, year, found, out / "forecast.svg")

    print(f"{len(series)} months, the last {TEST} of them for the test; MAE, and MASE in brackets")
    print(f"{'months ahead':42}{'1':>14}{'12':>16}{'1 to 12':>16}")
    for name, values in [*found.items()][1:]:
        errors = np.abs(values - found["truth"]).mean(0)
        reached = errors[0] / scale, errors.mean() / scale
        print(f"{name:42}" + "  ".join(f"{e:6.3f} ({e / scale:.3f})" for e in (errors[0], errors[-1], errors.mean())))
    if any(error > most for error, most in zip(reached, TARGET.values())):
        sys.exit(f"the LSTM's MASE is above {TARGET}")


if __name__ == "__main__":
    main()
