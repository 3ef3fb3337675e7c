"""Encoder-decoder networks: a sequence of tokens from another one of another length."""

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.nn import decoding
from rnnfast.nn.activation import Tanh
from rnnfast.nn.attention import SCORES, Attention
from rnnfast.nn.checks import as_array, as_generator, check_choice, check_flag, check_number
from rnnfast.nn.dropout import Dropout
from rnnfast.nn.linear import Embedding, Linear
from rnnfast.nn.module import Container, Saved, joined
from rnnfast.nn.recurrent import GRU, LSTM

CELLS = {"GRU": GRU, "LSTM": LSTM}

DROPOUTS = ("source_dropout", "target_dropout", "output_dropout")


class Seq2Seq(Container):
    """m, e = encoder(source_embedding(source))
    h = decoder(target_embedding(target_in), bridge(e))
    c_t = attention of h_t to m
    logits_t = output(tanh(combine([h_t, c_t])))                                        (Luong, 2015)

    The attention of a step is not an input of the next, so that the decoder takes all steps of a known target in one
    call. Everything is batch first.

    source_size, target_size: numbers of tokens. cell: "GRU" or "LSTM", of the encoder and of the decoder, both with
    num_layers of hidden_size. bidirectional: the encoder's; its last states then become the decoder's first by a Linear
    (of all layers at once), else they are these. attention: "dot" or "additive", as in Attention. dropout: of
    embeddings, between recurrent layers and before the output. matmul, threads, rng: as in Linear.
    """

    def __init__(
        self,
        source_size,
        target_size,
        embedding_dim,
        hidden_size,
        *,
        cell="GRU",
        num_layers=1,
        bidirectional=False,
        attention="dot",
        dropout=0.0,
        matmul=None,
        threads=None,
        rng=None,
    ):
        self.source_size, self.target_size, self.embedding_dim = source_size, target_size, embedding_dim
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.cell = check_choice(cell, "cell", tuple(CELLS))
        self.bidirectional = check_flag(bidirectional, "bidirectional")
        self.attention = check_choice(attention, "attention", SCORES)
        self.dropout = check_number(dropout, "dropout", 0.0, 1.0)
        self.matmul, self.threads = matmul, threads
        rng = None if rng is None else as_generator(rng)
        options = {"matmul": matmul, "threads": threads, "rng": rng}
        recurrent = {"num_layers": num_layers, "batch_first": True, "dropout": dropout, **options}
        kind, directions = CELLS[cell], 2 if bidirectional else 1
        self._layers = {
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

    def members(self):
        return self._layers

    def state_names(self):
        """What the arrays of a state are called."""
        return ("h", "c") if self.cell == "LSTM" else ("h",)

    def __call__(self, x, *, lengths=None):
        """x: (source [B, S], target_in [B, T]) integers, lengths: (of source [B], of target_in [B]), either may be None

        -> logits [B, T, target_size], zeros past the lengths
        """
        return self.forward(x, lengths=lengths)[0]

    def forward(self, x, state=None, *, lengths=None, training=False, rng=None):
        """-> logits, None, saved; the arguments are those of a call and of `Module.forward`."""
        if state is not None:
            raise InputError("state: Seq2Seq has none, expected None")
        tape = _Tape(self, check_flag(training, "training"), rng)
        logits, _ = self._run(tape, x, lengths)
        return logits, None, Saved((tape,), logits.shape, tape.nbytes) if training else None

    def backward(self, dy, dstate, saved, *, dx=True):
        """-> None, None, dweights"""
        if dstate is not None:
            raise InputError("dstate: Seq2Seq has no state, expected None")
        dy = self._checked(dy, saved)
        (tape,) = saved.values
        dy = tape.packed(dy)
        dweights = {}

        def back(name, dy, dstate=None):
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

    def outputs(self, x, *, lengths=None, rng=None):
        """Name of each layer -> its output, in their order, of a `forward` in training with these arguments; attention
        has its context next to the decoder's output."""
        tape = _Tape(self, True, rng, {})
        self._run(tape, x, lengths)
        return tape.outputs

    def align(self, x, *, lengths=None):
        """x, lengths as a call takes them -> the attention's weights [B, T, S]: for each step of the target how much
        of it comes from each position of the source."""
        return self._run(_Tape(self, False, None), x, lengths)[1]

    def encode(self, source, lengths=None):
        """source [B, S], lengths [B] -> memory: a tuple of the encoder's outputs [B, S, directions * hidden_size] and
        the attention's keys for them [B, S, ...], the decoder's first state: a tuple of h and, for LSTM, c,
        [num_layers, B, hidden_size]."""
        memory, state = self._encode(_Tape(self, False, None), source, lengths)
        return (memory, self._layers["attention"].keys(memory)), state

    def step(self, tokens, state, memory, lengths=None):
        """One step of the decoder: tokens [B], the state before it, and what `encode` returned and was given

        -> logits [B, target_size], the state after it, the attention's weights [B, S].
        """
        tokens = as_array(tokens, "tokens")
        if tokens.ndim != 1:
            raise InputError(f"tokens: shape is {list(tokens.shape)}, expected [B]")
        memory, keys = memory
        logits, state, weights = self._decode(
            _Tape(self, False, None), tokens[:, None], state, memory, lengths, None, keys
        )
        return logits[:, 0], state, weights[:, 0]

    def greedy(self, source, lengths=None, *, start, end, max_steps=100):
        """-> decoding.Decoded: as `decoding.greedy` says."""
        return decoding.greedy(self, source, lengths, start=start, end=end, max_steps=max_steps)

    def beam(self, source, lengths=None, *, start, end, max_steps=100, width=4):
        """-> decoding.Decoded: as `decoding.beam` says."""
        return decoding.beam(self, source, lengths, start=start, end=end, max_steps=max_steps, width=width)

    def save(self, path):
        """Write the ONNX files encoder.onnx and decoder_step.onnx into the folder `path`, which is made if it is not
        there. `decoding.Exported` decodes with them, several times as fast as this object does.

        encoder: source [batch, source_time] int64, lengths [batch] int32 -> memory, keys where the attention has W_k,
            h0 and, for LSTM, c0
        decoder_step: token [batch] int64, lengths, memory, keys, h0, c0 -> logits, hn, cn, attention
        """
        from rnnfast.export.seq2seq import export_seq2seq

        export_seq2seq(self, path)

    def _run(self, tape, x, lengths):
        """-> logits, the attention's weights"""
        source, target = (as_array(a, name) for a, name in zip(_pair(x, "x"), ("source", "target_in")))
        if source.ndim != 2 or target.ndim != 2 or len(source) != len(target):
            raise InputError(f"x: shapes are {list(source.shape)} and {list(target.shape)}, expected [B, S] and [B, T]")
        of_source, of_target = (None, None) if lengths is None else _pair(lengths, "lengths")
        memory, initial = self._encode(tape, source, of_source)
        logits, _, weights = self._decode(tape, target, initial, memory, of_source, of_target)
        return logits, weights

    def _encode(self, tape, source, lengths):
        embedded = tape.run("source_dropout", tape.run("source_embedding", source))
        memory, last = tape.run_states("encoder", embedded, None, lengths)
        states = self._as_tuple(last)
        if self.bidirectional:
            states = tuple(
                _unflattened(tape.run(f"bridge_{name}", _flattened(s)), self.num_layers)
                for name, s in zip(self.state_names(), states)
            )
        return memory, states

    def _decode(self, tape, target, state, memory, of_source, of_target, keys=None):
        embedded = tape.run("target_dropout", tape.run("target_embedding", target))
        hidden, state = tape.run_states("decoder", embedded, self._as_state(state), of_target)
        context, weights, saved = self._layers["attention"].forward(
            hidden, memory, keys=keys, lengths=of_source, query_lengths=of_target, training=tape.training
        )
        tape.within = None if of_target is None else np.arange(hidden.shape[1]) < np.asarray(of_target)[:, None]
        joint = tape.packed(np.concatenate([hidden, context], axis=-1))
        tape.keep("attention", saved, weights, joint)
        joint = tape.run("output_dropout", tape.run("tanh", tape.run("combine", joint)))
        return tape.padded(tape.run("output", joint)), self._as_tuple(state), weights

    def _as_tuple(self, state):
        return state if self.cell == "LSTM" else (state,)

    def _as_state(self, states):
        return tuple(states) if self.cell == "LSTM" else next(iter(states))

    def summary_rows(self, shape=None):
        shapes = {
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
    """One pass through the layers of a Seq2Seq, and what each of them saves; outputs: a dict for what they give."""

    def __init__(self, net, training, rng, outputs=None):
        self.outputs = outputs
        self.members = net.members() | {"tanh": Tanh()}
        if net.dropout:
            self.members |= dict.fromkeys(DROPOUTS, Dropout(net.dropout))
        self.training, self.saved, self.within, self.nbytes = training, {}, None, 0
        self.rng = as_generator(rng) if training else None

    def run(self, name, x):
        return self.run_states(name, x)[0] if name in self.members else x

    def run_states(self, name, x, state=None, lengths=None):
        y, state, saved = self.members[name].forward(x, state, lengths=lengths, training=self.training, rng=self.rng)
        self.keep(name, saved, y)
        return y, state

    def keep(self, name, saved, *results):
        """What a layer saves, and the results that it or the next one refers to."""
        if self.training:
            self.saved[name] = saved
            self.nbytes += saved.nbytes + sum(a.nbytes for a in results)
        if self.outputs is not None:
            self.outputs[name] = results[-1]

    def packed(self, x):
        """x [B, T, size] -> [N, size]: the steps within the lengths of the target; x itself if it has none."""
        return x if self.within is None else x[self.within]

    def padded(self, x):
        """The inverse of `packed`, with zeros past the lengths."""
        if self.within is None:
            return x
        y = np.zeros((*self.within.shape, x.shape[-1]), np.float32)
        y[self.within] = x
        return y


def _pair(value, name):
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        received = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise InputTypeError(
            f"{name}: got a {type(value).__name__}{received}, expected a pair: one for the source, one for the target"
        )
    return value


def _flattened(state):
    """[L, B, H] -> [B, L * H]"""
    return state.swapaxes(0, 1).reshape(state.shape[1], state.shape[0] * state.shape[2])


def _unflattened(flat, count):
    """[B, L * H] -> [L, B, H]"""
    return np.ascontiguousarray(flat.reshape(len(flat), count, flat.shape[1] // count).swapaxes(0, 1))
