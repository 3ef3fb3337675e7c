"""Layers with torch's names, arguments, shapes and state dicts, for float32 NumPy arrays."""
from .activation import ELU, Hardsigmoid, LeakyReLU, ReLU, Sigmoid, Softplus, Softsign, Tanh
from .attention import Attention
from .dropout import Dropout
from .linear import Embedding, Linear
from .module import Module, Sequential
from .normalization import LayerNorm
from .recurrent import GRU, LSTM, RNN
from .seq2seq import Seq2Seq

__all__ = ["Attention", "Dropout", "ELU", "Embedding", "GRU", "Hardsigmoid", "LSTM", "LayerNorm", "LeakyReLU", "Linear",
           "Module", "RNN", "ReLU", "Seq2Seq", "Sequential", "Sigmoid", "Softplus", "Softsign", "Tanh"]
