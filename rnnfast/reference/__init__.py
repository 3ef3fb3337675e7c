"""Reference implementation of the cells and their gradients in float64 NumPy, for readers and for tests.

It is slow, as it follows the formulas step by step, and imports only NumPy.
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
