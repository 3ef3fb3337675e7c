"""Layers with the names, arguments, shapes and state dicts of torch.nn, on float32 NumPy arrays."""

from rnnfast.nn.activation import ELU, Hardsigmoid, LeakyReLU, ReLU, Sigmoid, Softplus, Softsign, Tanh
from rnnfast.nn.attention import Attention
from rnnfast.nn.dropout import Dropout
from rnnfast.nn.files import load
from rnnfast.nn.linear import Embedding, Linear
from rnnfast.nn.module import Module, Sequential
from rnnfast.nn.normalization import LayerNorm
from rnnfast.nn.packed import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, unpack_sequence
from rnnfast.nn.recurrent import GRU, LSTM, RNN
from rnnfast.nn.seq2seq import Seq2Seq

__all__ = [
    "Attention",
    "Dropout",
    "ELU",
    "Embedding",
    "GRU",
    "Hardsigmoid",
    "LSTM",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Module",
    "PackedSequence",
    "RNN",
    "ReLU",
    "Seq2Seq",
    "Sequential",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
    "load",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "unpack_sequence",
]
