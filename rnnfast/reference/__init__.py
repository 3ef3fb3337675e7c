"""The mathematics of the cells and of their gradients in NumPy float64: textbook and oracle.

Slow on purpose; imports only NumPy.
"""

from rnnfast.reference.activations import ACTIVATIONS, DERIVATIVES, defaults
from rnnfast.reference.time_loop import gru, gru_backward, lstm, lstm_backward, rnn, rnn_backward

__all__ = [
    "ACTIVATIONS",
    "DERIVATIVES",
    "defaults",
    "gru",
    "gru_backward",
    "lstm",
    "lstm_backward",
    "rnn",
    "rnn_backward",
]
