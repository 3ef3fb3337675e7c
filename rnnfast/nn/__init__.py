"""Layers with the names, arguments, shapes and state dicts of torch.nn, on float32 NumPy arrays."""

from rnnfast.nn.activation import ELU, Hardsigmoid, LeakyReLU, ReLU, Sigmoid, Softmax, Softplus, Softsign, Tanh
from rnnfast.nn.attention import Attention
from rnnfast.nn.cells import GRUCell, LSTMCell, RNNCell
from rnnfast.nn.convolution import Conv1d
from rnnfast.nn.dropout import Dropout
from rnnfast.nn.files import load
from rnnfast.nn.keras_layers import from_keras
from rnnfast.nn.linear import Embedding, Linear
from rnnfast.nn.module import Module, Sequential
from rnnfast.nn.normalization import BatchNorm1d, LayerNorm
from rnnfast.nn.packed import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, unpack_sequence
from rnnfast.nn.recurrent import GRU, LSTM, RNN
from rnnfast.nn.seq2seq import Seq2Seq
from rnnfast.nn.torch_modules import from_torch

__all__ = [
    "Attention",
    "BatchNorm1d",
    "Conv1d",
    "Dropout",
    "ELU",
    "Embedding",
    "GRU",
    "GRUCell",
    "Hardsigmoid",
    "LSTM",
    "LSTMCell",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Module",
    "PackedSequence",
    "RNN",
    "RNNCell",
    "ReLU",
    "Seq2Seq",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
    "from_keras",
    "from_torch",
    "load",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "unpack_sequence",
]
