"""The mathematics of the cells in NumPy float64: textbook and oracle. Slow on purpose; imports only NumPy."""
from .activations import ACTIVATIONS, defaults
from .recurrent import gru, lstm, rnn

__all__ = ["ACTIVATIONS", "defaults", "gru", "lstm", "rnn"]
