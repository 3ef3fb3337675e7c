"""Encoder-decoder networks, which turn a sequence of tokens into another one of another length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.nn import decoding
from rnnfast.nn.activation import Tanh
from rnnfast.nn.attention import SCORES, Attention
from rnnfast.nn.checks import as_array, as_generator, check_choice, check_flag, check_number
from rnnfast.nn.dropout import Dropout
from rnnfast.nn.files import as_path, save
from rnnfast.nn.linear import Embedding, Linear
from rnnfast.nn.module import Container, Saved, joined
from rnnfast.nn.recurrent import GRU, LSTM

if TYPE_CHECKING:
    import os

    from numpy.typing import ArrayLike

    from rnnfast.nn.module import SummaryRow
    from rnnfast.nn.types import FloatArray, Gradients, Matmul, Seed, SummaryShape

CELLS = {"GRU": GRU, "LSTM": LSTM}

DROPOUTS = ("source_dropout", "target_dropout", "output_dropout")


class Seq2Seq(Container):
    """An encoder and a decoder with attention:

        m, e = encoder(source_embedding(source))
        h = decoder(target_embedding(target_in), bridge(e))
        c_t = attention of h_t to m
        logits_t = output(tanh(combine([h_t, c_t])))

    The formula is from Luong et al. (2015), "Effective Approaches to Attention-based Neural Machine Translation". The
    attention of a step is not an input of the next one, so that the decoder takes all steps of a known target in one
    call. All arrays are batch first.

    Args:
        source_size: The number of source tokens.
        target_size: The number of target tokens.
        embedding_dim: The size of both embeddings.
        hidden_size: The size of the recurrent layers.
        cell: "GRU" or "LSTM", the kind of encoder and decoder.
        num_layers: The number of layers of encoder and decoder.
        bidirectional: Whether the encoder is bidirectional. Then a Linear, over all layers at once, makes the decoder's
            first state of the encoder's last one; otherwise they are the same.
        attention: "dot" or "additive", as in Attention.
        dropout: The probability of dropout after the embeddings, between recurrent layers and before the output.
        matmul: As in Linear.
        threads: As in Linear.
        rng: As in Linear.

    Raises:
        InputError: An argument is out of range.
        InputTypeError: An argument has the wrong type.
        LimitError: The weights are too large.
        UnsupportedError: matmul="blas" without SciPy.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        embedding_dim: int,
        hidden_size: int,
        *,
        cell: str = "GRU",
        num_layers: int = 1,
        bidirectional: bool = False,
        attention: str = "dot",
        dropout: float = 0.0,
        matmul: Matmul = None,
        threads: int | None = None,
        rng: Seed = None,
    ) -> None:
        self.source_size, self.target_size, self.embedding_dim = source_size, target_size, embedding_dim
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.cell = check_choice(cell, "cell", tuple(CELLS))
        self.bidirectional = check_flag(bidirectional, "bidirectional")
        self.attention = check_choice(attention, "attention", SCORES)
        self.dropout = check_number(dropout, "dropout", 0.0, 1.0)
        self.matmul, self.threads = matmul, threads
        rng = None if rng is None else as_generator(rng)
        options: dict[str, Any] = {"matmul": matmul, "threads": threads, "rng": rng}
        recurrent: dict[str, Any] = {"num_layers": num_layers, "batch_first": True, "dropout": dropout, **options}
        kind: Any = CELLS[cell]
        directions = 2 if bidirectional else 1
        self._layers: dict[str, Any] = {
            "source_embedding": Embedding(source_size, embedding_dim, rng=rng),
            "encoder": kind(embedding_dim, hidden_size, bidirectional=bidirectional, **recurrent),
            "target_embedding": Embedding(target_size, embedding_dim, rng=rng),
            "decoder": kind(embedding_dim, hidden_size, **recurrent),
            "attention": Attention(hidden_size, directions * hidden_size, attention, **options),
            "combine": Linear((1 + directions) * hidden_size, hidden_size, **options),
            "output": Linear(hidden_size, target_size, **options),
        }
        if bidirectional:
            size = num_layers * hidden_size
            self._layers |= {f"bridge_{letter}": Linear(2 * size, size, **options) for letter in self.state_names()}

    def members(self) -> dict[str, Any]:
        return self._layers

    def state_names(self) -> tuple[str, ...]:
        """Return the names of a state's arrays: ("h",), or ("h", "c") for LSTM."""
        return ("h", "c") if self.cell == "LSTM" else ("h",)

    def __call__(self, x: Any, *, lengths: Any = None) -> FloatArray:
        """Compute the logits of each next target token, for known targets.

        Args:
            x: The pair (source [B, S], target_in [B, T]) of integers; target_in is the target after a start token.
            lengths: The pair of their lengths, integers [B]; either, or both, may be None.

        Returns:
            The logits, float32 [B, T, target_size]; zeros after the lengths.

        Raises:
            InputError: A shape, length or token does not fit.
            InputTypeError: A dtype or type does not fit.
        """
        return self.forward(x, lengths=lengths)[0]

    def forward(
        self, x: Any, state: Any = None, *, lengths: Any = None, training: bool = False, rng: Seed = None
    ) -> tuple[FloatArray, None, Saved | None]:
        """Compute the logits, as a call does, and save what `backward` needs.

        Args:
            x: As in a call.
            state: None, as a Seq2Seq has no state.
            lengths: As in a call.
            training: Whether to apply dropout and save.
            rng: A seed or a numpy Generator for dropout; the same seed gives the same bits.

        Returns:
            The logits, None, and an object for `backward` (None unless training).

        Raises:
            InputError: A shape, length or token does not fit, or a state is given.
            InputTypeError: A dtype or type does not fit.
        """
        if state is not None:
            raise InputError("state: Seq2Seq has none, expected None")
        tape = _Tape(self, self._check_training(training), rng)
        logits, _ = self._run(tape, x, lengths)
        return logits, None, Saved((tape,), logits.shape, tape.nbytes) if training else None

    def backward(self, dy: Any, dstate: Any, saved: Any, *, dx: bool = True) -> tuple[None, None, Gradients]:
        """Compute the gradients of the parameters from that of the logits.

        Args:
            dy: float32 [B, T, target_size]; None is zeros.
            dstate: None, as a Seq2Seq has no state.
            saved: The third result of `forward` with training=True.
            dx: Ignored, as tokens have no gradient.

        Returns:
            None, None, and the gradients of the parameters by name.

        Raises:
            InputError: A shape does not fit, or a state's gradient is given.
            InputTypeError: A dtype is wrong, or `saved` is not an object that `forward` returned.
        """
        self.refuse_training()
        if dstate is not None:
            raise InputError("dstate: Seq2Seq has no state, expected None")
        dy = self._checked(dy, saved)
        (tape,) = saved.values
        dy = tape.packed(dy)
        dweights: dict[str, Any] = {}

        def back(name: str, dy: Any, dstate: Any = None) -> Any:
            if name not in tape.members:
                return dy
            dx, dstate, dweights[name] = tape.members[name].backward(dy, dstate, tape.saved[name])
            return (dx, dstate) if name in ("encoder", "decoder") else dx

        dy = back("combine", back("tanh", back("output_dropout", back("output", dy))))
        dhidden, dcontext = np.split(tape.padded(dy), [self.hidden_size], axis=-1)
        dquery, dmemory, dweights["attention"] = self._layers["attention"].backward(dcontext, tape.saved["attention"])
        dembedded, dinitial = back("decoder", dhidden + dquery)
        back("target_embedding", back("target_dropout", dembedded))
        if self.bidirectional:
            dinitial = self._as_state(
                _unflattened(back(f"bridge_{name}", _flattened(d)), 2 * self.num_layers)
                for name, d in zip(self.state_names(), self._as_tuple(dinitial))
            )
        dembedded, _ = back("encoder", dmemory, dinitial)
        back("source_embedding", back("source_dropout", dembedded))
        return None, None, joined({name: dweights[name] for name in self._layers})

    def outputs(self, x: Any, *, lengths: Any = None, rng: Seed = None) -> dict[str, FloatArray]:
        """Return the output of each layer by name, in order, as `forward` in training computes it.

        The output of "attention" is the decoder's output with the context after it.

        Args:
            x: As in a call.
            lengths: As in a call.
            rng: A seed or a numpy Generator for dropout.

        Raises:
            InputError: A shape, length or token does not fit.
            InputTypeError: A dtype or type does not fit.
        """
        tape = _Tape(self, True, rng, {})
        self._run(tape, x, lengths)
        return tape.outputs

    def align(self, x: Any, *, lengths: Any = None) -> FloatArray:
        """Return the attention weights: for each step of the target, its weights over the positions of the source.

        Args:
            x: As in a call.
            lengths: As in a call.

        Returns:
            float32 [B, T, S].

        Raises:
            InputError: A shape, length or token does not fit.
            InputTypeError: A dtype or type does not fit.
        """
        return self._run(_Tape(self, False, None), x, lengths)[1]

    def encode(
        self, source: Any, lengths: ArrayLike | None = None
    ) -> tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, ...]]:
        """Run the encoder.

        Args:
            source: Integers [B, S].
            lengths: Integers [B], the number of valid tokens of each source; None is S for all.

        Returns:
            The memory and the decoder's first state. The memory is a tuple of the encoder's outputs
            [B, S, directions * hidden_size] and the attention's keys for them [B, S, ...]; the state is (h,) or, for
            LSTM, (h, c), each [num_layers, B, hidden_size]. All are float32.

        Raises:
            InputError: A shape, length or token does not fit.
            InputTypeError: A dtype or type does not fit.
        """
        memory, state = self._encode(_Tape(self, False, None), source, lengths)
        return (memory, self._layers["attention"].keys(memory)), state

    def step(
        self,
        tokens: Any,
        state: tuple[FloatArray, ...],
        memory: tuple[FloatArray, FloatArray],
        lengths: ArrayLike | None = None,
    ) -> tuple[FloatArray, tuple[FloatArray, ...], FloatArray]:
        """Run one step of the decoder.

        Args:
            tokens: Integers [B], the last token of each row.
            state: The state before the step, from `encode` or the last step.
            memory: The memory from `encode`.
            lengths: The lengths of the sources, as for `encode`.

        Returns:
            The logits [B, target_size], the state after the step, and the attention weights [B, S], float32.

        Raises:
            InputError: A shape, length or token does not fit.
            InputTypeError: A dtype or type does not fit.
        """
        tokens = as_array(tokens, "tokens")
        if tokens.ndim != 1:
            raise InputError(f"tokens: shape is {list(tokens.shape)}, expected [B]")
        outputs, keys = memory
        logits, state, weights = self._decode(
            _Tape(self, False, None), tokens[:, None], state, outputs, lengths, None, keys
        )
        return logits[:, 0], state, weights[:, 0]

    def greedy(
        self, source: Any, lengths: Any = None, *, start: int, end: int, max_steps: int = 100
    ) -> decoding.Decoded:
        """Decode greedily; see `rnnfast.nn.decoding.greedy`, which has the same arguments, results and errors."""
        return decoding.greedy(self, source, lengths, start=start, end=end, max_steps=max_steps)

    def beam(
        self, source: Any, lengths: Any = None, *, start: int, end: int, max_steps: int = 100, width: int = 4
    ) -> decoding.Decoded:
        """Decode by beam search; see `rnnfast.nn.decoding.beam`, which has the same arguments, results and errors."""
        return decoding.beam(self, source, lengths, start=start, end=end, max_steps=max_steps, width=width)

    def save(self, path: str | os.PathLike[str]) -> None:  # type: ignore[override]
        """Write a folder with the ONNX files encoder.onnx and decoder_step.onnx, or one safetensors file.

        `rnnfast.nn.load` makes a Seq2Seq of both again. A safetensors file has the tensors of the state dict.
        `rnnfast.nn.decoding.Exported` decodes with them, several times as fast as this object does. Inputs and outputs
        are:

            encoder: source [batch, source_time] int64, lengths [batch] int32
                -> memory, keys (if the attention has W_k), h0, c0 (for LSTM)
            decoder_step: token [batch] int64, lengths, memory, keys, h0, c0
                -> logits, hn, cn, attention

        Args:
            path: The folder for the files, which is made if it does not exist; or a file that ends in .safetensors.

        Raises:
            InputError: A file cannot be written, or the path ends in .onnx.
            InputTypeError: `path` is no path.
            LimitError: The weights are larger than an ONNX file can be.
            UnsupportedError: The path ends in .safetensors, and safetensors is not installed.
        """
        ending = as_path(path).suffix
        if ending == ".safetensors":
            save(self, path)
        elif ending == ".onnx":
            raise InputError(f"path: {str(path)!r} ends in .onnx, but a Seq2Seq is two of them: expected a folder")
        else:
            from rnnfast.export.seq2seq import export_seq2seq

            export_seq2seq(self, path)

    def _run(self, tape, x, lengths):
        """Return the logits and the attention weights."""
        source, target = (as_array(a, name) for a, name in zip(_pair(x, "x"), ("source", "target_in")))
        if source.ndim != 2 or target.ndim != 2 or len(source) != len(target):
            raise InputError(f"x: shapes are {list(source.shape)} and {list(target.shape)}, expected [B, S] and [B, T]")
        source_lengths, target_lengths = (None, None) if lengths is None else _pair(lengths, "lengths")
        memory, initial = self._encode(tape, source, source_lengths)
        logits, _, weights = self._decode(tape, target, initial, memory, source_lengths, target_lengths)
        return logits, weights

    def _encode(self, tape, source, lengths):
        """Return the encoder's outputs, and the decoder's first state as a tuple."""
        embedded = tape.run("source_dropout", tape.run("source_embedding", source))
        memory, last = tape.run_states("encoder", embedded, None, lengths)
        states = self._as_tuple(last)
        if self.bidirectional:
            states = tuple(
                _unflattened(tape.run(f"bridge_{name}", _flattened(s)), self.num_layers)
                for name, s in zip(self.state_names(), states)
            )
        return memory, states

    def _decode(self, tape, target, state, memory, source_lengths, target_lengths, keys=None):
        """Return the logits, the last state as a tuple, and the attention weights."""
        embedded = tape.run("target_dropout", tape.run("target_embedding", target))
        hidden, state = tape.run_states("decoder", embedded, self._as_state(state), target_lengths)
        context, weights, saved = self._layers["attention"].forward(
            hidden, memory, keys=keys, lengths=source_lengths, query_lengths=target_lengths, training=tape.training
        )
        tape.within = (
            None if target_lengths is None else np.arange(hidden.shape[1]) < np.asarray(target_lengths)[:, None]
        )
        joint = tape.packed(np.concatenate([hidden, context], axis=-1))
        tape.keep("attention", saved, weights, joint)
        joint = tape.run("output_dropout", tape.run("tanh", tape.run("combine", joint)))
        return tape.padded(tape.run("output", joint)), self._as_tuple(state), weights

    def _as_tuple(self, state):
        """Return (h,) or (h, c) for a state of the encoder or decoder."""
        return state if self.cell == "LSTM" else (state,)

    def _as_state(self, states):
        """Return the state of the encoder or decoder for (h,) or (h, c): the inverse of `_as_tuple`."""
        return tuple(states) if self.cell == "LSTM" else next(iter(states))

    def summary_rows(self, shape: SummaryShape | None = None) -> list[SummaryRow]:
        shapes: dict[str, SummaryShape] = {
            "source_embedding": ("B", "S"),
            "encoder": ("B", "S", self.embedding_dim),
            "target_embedding": ("B", "T"),
            **dict.fromkeys(("bridge_h", "bridge_c"), ("B", "...")),
        }
        return [
            row._replace(layer=f"{name} {row.layer}")
            for name, layer in self._layers.items()
            for row in layer.summary_rows(shapes.get(name, ("B", "T", self.hidden_size)))
        ]


class _Tape:
    """One pass through the layers of a Seq2Seq: it holds the objects that they save.

    `outputs`, if it is a dict, gets the layers' outputs by name.
    """

    def __init__(self, net, training, rng, outputs=None):
        self.outputs: Any = outputs
        self.members = net.members() | {"tanh": Tanh()}
        if net.dropout:
            self.members |= dict.fromkeys(DROPOUTS, Dropout(net.dropout))
        self.training, self.saved, self.nbytes = training, {}, 0
        self.within: Any = None  # bool [B, T]: the time steps within the lengths of the target; None is all
        self.rng = as_generator(rng) if training else None

    def run(self, name, x):
        """Return the output of a layer, or x if there is no such layer."""
        return self.run_states(name, x)[0] if name in self.members else x

    def run_states(self, name, x, state=None, lengths=None):
        """Return the output and the last state of a layer."""
        y, state, saved = self.members[name].forward(x, state, lengths=lengths, training=self.training, rng=self.rng)
        self.keep(name, saved, y)
        return y, state

    def keep(self, name, saved, *results):
        """Hold the object that a layer saved, and count the results that it or the next layer refers to."""
        if self.training:
            self.saved[name] = saved
            self.nbytes += saved.nbytes + sum(a.nbytes for a in results)
        if self.outputs is not None:
            self.outputs[name] = results[-1]

    def packed(self, x):
        """Return the steps of x [B, T, size] within the target's lengths, [N, size]; x itself without lengths."""
        return x if self.within is None else x[self.within]

    def padded(self, x):
        """Return packed steps as [B, T, size] with zeros after the lengths: the inverse of `packed`."""
        if self.within is None:
            return x
        y = np.zeros((*self.within.shape, x.shape[-1]), np.float32)
        y[self.within] = x
        return y


def _pair(value, name):
    """Return a tuple or list of two values."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        received = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise InputTypeError(
            f"{name}: got a {type(value).__name__}{received}, expected a pair: one for the source, one for the target"
        )
    return value


def _flattened(state):
    """Reshape a state [L, B, H] to [B, L * H]."""
    return state.swapaxes(0, 1).reshape(state.shape[1], state.shape[0] * state.shape[2])


def _unflattened(flat, count):
    """Reshape [B, L * H] to a state [L, B, H], where L is `count`."""
    return np.ascontiguousarray(flat.reshape(len(flat), count, flat.shape[1] // count).swapaxes(0, 1))
