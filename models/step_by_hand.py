"""Training step by hand: a model of four letters learns "hello", with the float64 reference and with rnnfast.nn.

python models/step_by_hand.py [--steps N] [--seed N] [--out FOLDER]

Both begin with the same weights and print the same numbers; step_by_hand.md has the equations.
"""

import pathlib
import sys

import click
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import rnnfast
from rnnfast import nn, reference, train

TEXT, LETTERS, HIDDEN, RATE = "hello", "helo", 3, 0.1
TARGET = 2e-6  # largest difference between float32 and float64 losses; measured: 1e-7
TANH = [[("Tanh", 0.0, 0.0)]]

NUMBERS = np.array([LETTERS.index(letter) for letter in TEXT])
X = np.eye(4)[NUMBERS[:-1], None]  # [T, B, 4]: h, e, l, l, one-hot
TARGETS = NUMBERS[1:, None]  # [T, B]:    e, l, l, o


def on_reference(weights, steps):
    """Train in float64, with an equation on each line.

    Returns the loss at each step, the gradients of the first step and the weights after the last.
    """
    W, R, b, c, V, v = (weights[name].astype(np.float64) for name in weights)
    losses, first = [], None
    for _ in range(steps):
        B = np.concatenate([b, c])[None]
        h = reference.rnn(X, W[None], R[None], B, activations=TANH)[0][:, 0]  # [T, B, H]
        scores = h @ V.T + v  # [T, B, 4]
        p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        losses.append(-np.log(np.take_along_axis(p, TARGETS[..., None], -1)).mean())

        ds = (p - np.eye(4)[TARGETS]) / TARGETS.size
        dV, dv, dh = np.einsum("tbk,tbh->kh", ds, h), ds.sum((0, 1)), ds @ V
        d = reference.rnn_backward(dh[:, None], None, X, W[None], R[None], B, activations=TANH)
        db, dc = np.split(d["B"][0], 2)
        gradients = [d["W"][0], d["R"][0], db, dc, dV, dv]
        first = first or gradients
        W, R, b, c, V, v = (w - RATE * dw for w, dw in zip((W, R, b, c, V, v), gradients))
    return losses, dict(zip(weights, first)), dict(zip(weights, (W, R, b, c, V, v)))


def on_nn(net, steps):
    """Train the network; return the loss at each step and the gradients of the first."""
    loss, x, losses, first = train.CrossEntropy(), X.astype(np.float32), [], None
    for _ in range(steps):
        scores, _, saved = net.forward(x, training=True)
        value, dscores = loss(scores, TARGETS)
        _, _, gradients = net.backward(dscores, None, saved)
        first = first or gradients
        losses.append(value)
        net.load_state_dict({name: w - np.float32(RATE) * gradients[name] for name, w in net.state_dict().items()})
    return losses, first


def written(model, letter, count=len(TEXT) - 1):
    """Return `letter` and the likeliest letters after it; each letter that is written is the next input."""
    stream, text = model.stream(), letter
    for _ in range(count):
        x = np.eye(4, dtype=np.float32)[LETTERS.index(text[-1])]
        text += LETTERS[stream.step(x=x[None, None]).argmax()]
    return text


def picture(losses, other, h, p):
    """Draw the losses, and the trained network's state and its next-letter probabilities at each letter."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    curve, state, guess = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    curve.plot(losses, color="#1971c2", linewidth=3, alpha=0.5, label="reference, float64")
    curve.plot(other, color="#d6336c", linewidth=1, linestyle="--", label="nn, float32")
    curve.set(title="loss", xlabel="step")
    curve.legend(frameon=False)
    for panel, values, rows, title, colours, least in (
        (state, h, ("1", "2", "3"), "state h", "RdBu_r", -1),
        (guess, p, LETTERS, "p of the next letter", "Blues", 0),
    ):
        panel.imshow(values.T, cmap=colours, vmin=least, vmax=1, aspect="auto")
        panel.set(
            title=title,
            xticks=range(4),
            xticklabels=TEXT[:-1],
            yticks=range(len(rows)),
            yticklabels=rows,
            xlabel="input",
        )
        for (t, k), value in np.ndenumerate(values):
            panel.text(
                t,
                k,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if abs(value) > 0.6 else "black",
            )
    return figure


@click.command()
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(1), help="Steps of gradient descent.")
@click.option("--seed", default=1, show_default=True, help="Seed of the initial weights.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, exists=True, path_type=pathlib.Path),
    default=pathlib.Path(__file__).parent,
    help="Folder for step_by_hand.onnx and .svg.",
)
def main(steps, seed, out):
    """Train twice, compare the numbers and let the network write."""
    rng = np.random.default_rng(seed)
    net = nn.Sequential(nn.RNN(4, HIDDEN, rng=rng), nn.Linear(HIDDEN, 4, rng=rng))
    losses, gradients, weights = on_reference(net.state_dict(), steps)
    nn_losses, nn_gradients = on_nn(net, steps)

    print(f"{'gradients at the first step, their norms':42}{'reference':>14}{'nn':>14}{'difference':>14}")
    for name, dw in gradients.items():
        print(
            f"{name:42}{np.linalg.norm(dw):14.9f}{np.linalg.norm(nn_gradients[name]):14.9f}"
            f"{np.abs(dw - nn_gradients[name]).max():14.1e}"
        )
    print(f"\n{'loss at step':42}{'reference':>14}{'nn':>14}{'difference':>14}")
    for step in sorted({0, 1, 2, *range(0, steps, max(1, steps // 8)), steps - 1}):
        print(f"{step:<42}{losses[step]:14.9f}{nn_losses[step]:14.9f}{abs(losses[step] - nn_losses[step]):14.1e}")

    net.save(out / "step_by_hand.onnx", states=True)
    text = written(rnnfast.load(out / "step_by_hand.onnx"), TEXT[0])
    h = net.layers[0](X.astype(np.float32))[0][:, 0]
    p = np.exp(net(X.astype(np.float32))[:, 0])
    with matplotlib.rc_context({"svg.hashsalt": "rnnfast", "svg.fonttype": "none"}):
        picture(losses, nn_losses, h, p / p.sum(-1, keepdims=True)).savefig(
            out / "step_by_hand.svg", metadata={"Date": None}
        )
    worst = np.abs(np.subtract(losses, nn_losses)).max()
    moved = max(np.abs(w - net.state_dict()[name]).max() for name, w in weights.items())
    print(f"\nlargest difference of a loss {worst:.1e} (at most {TARGET:.0e}), of a weight at the end {moved:.1e}")
    print(f'after "{TEXT[0]}" it writes "{text[1:]}"')
    sys.exit(0 if worst <= TARGET and text == TEXT else "the numbers differ, or it has not learned the word")


if __name__ == "__main__":
    main()
