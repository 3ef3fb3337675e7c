"""Layers with torch's names, arguments, shapes and state dicts, for float32 NumPy arrays."""
from .activation import ELU, Hardsigmoid, LeakyReLU, ReLU, Sigmoid, Softplus, Softsign, Tanh
from .attention import Attention
from .dropout import Dropout
from .linear import Embedding, Linear
from .module import Module, Sequential
from .normalization import LayerNorm
from .packed import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, unpack_sequence
from .recurrent import GRU, LSTM, RNN
from .seq2seq import Seq2Seq

__all__ = ["Attention", "Dropout", "ELU", "Embedding", "GRU", "Hardsigmoid", "LSTM", "LayerNorm", "LeakyReLU", "Linear",
           "Module", "PackedSequence", "RNN", "ReLU", "Seq2Seq", "Sequential", "Sigmoid", "Softplus", "Softsign",
           "Tanh", "pack_padded_sequence", "pack_sequence", "pad_packed_sequence", "unpack_sequence"]
