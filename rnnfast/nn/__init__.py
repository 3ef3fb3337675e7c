"""Layers with torch's names, arguments, shapes and state dicts, for float32 NumPy arrays."""
from .activation import ELU, Hardsigmoid, LeakyReLU, ReLU, Sigmoid, Softplus, Softsign, Tanh
from .linear import Embedding, Linear
from .module import Module, Sequential
from .recurrent import GRU, LSTM, RNN

__all__ = ["ELU", "Embedding", "GRU", "Hardsigmoid", "LSTM", "LeakyReLU", "Linear", "Module", "RNN", "ReLU",
           "Sequential", "Sigmoid", "Softplus", "Softsign", "Tanh"]
