"""The signature of layers that are stepped frame by frame: shapes of x and of the states, and every check of them."""

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.nn.checks import as_input


class LayerSignature:
    """One recurrent layer that runs forwards: shapes and checks of its x and states.

    Raises:
        InputError: The layer runs backwards, in one of its directions at least, so that it cannot run frame by frame.
    """

    __slots__ = ("layer", "widths")

    def __init__(self, layer):
        if layer.bidirectional or layer.reverse:
            raise InputError(f"{layer!r} begins at the end of a sequence, which a stream does not know")
        self.layer, self.widths = layer, layer.state_widths

    def validate_state(self, state):
        """Copy the state of a call, h or (h, c), into a list of arrays [num_layers(, batch), width], or raise."""
        state = (state,) if len(self.widths) == 1 else state
        if not isinstance(state, (tuple, list)) or len(state) != len(self.widths):
            raise InputTypeError(f"{self.layer!r}: state is {describe_type(state)}, expected h and c")
        values = [as_input(value, name).copy(order="C") for value, name in zip(state, ("h", "c"))]
        for value, width, name in zip(values, self.widths, ("h", "c")):
            expected = [self.layer.num_layers, *values[0].shape[1:-1], width]
            if list(value.shape) != expected or value.ndim not in (2, 3):
                raise InputError(
                    f"{self.layer!r}: state {name} has shape {list(value.shape)}, expected "
                    f"[{self.layer.num_layers}, batch, {width}] or [{self.layer.num_layers}, {width}]"
                )
        return values

    def validate_stream_state(self, state):
        """The same for one stream of a pool: without a batch axis."""
        values = self.validate_state(state)
        if values[0].ndim != 2:
            raise InputError(
                f"{self.layer!r}: state has shape {list(values[0].shape)}, expected "
                f"[{self.layer.num_layers}, {self.widths[0]}]: that of one stream"
            )
        return values

    def check_batch(self, values, batch):
        """Raise InputError unless states have this batch, a shape of one axis or of none."""
        if values[0].shape[1:-1] != batch:
            raise InputError(
                f"{self.layer!r}: state has shape {list(values[0].shape)}, expected "
                f"{[self.layer.num_layers, *batch, self.widths[0]]}"
            )

    def validate_frame(self, x):
        """Convert x to float32 [B, input_size] or [input_size], or raise."""
        return self._validate_x(x, (1, 2), "")

    def validate_frames(self, x):
        """Convert x to float32 [T, B, input_size] or [T, input_size], or raise."""
        return self._validate_x(x, (2, 3), "T, ")

    def _validate_x(self, x, ranks, lead):
        x, size = as_input(x, "x"), self.layer.input_size
        if x.ndim not in ranks or x.shape[-1] != size:
            raise InputError(
                f"x: shape is {list(x.shape)}, expected [{lead}B, {size}] or, without a batch, [{lead}{size}]"
            )
        return x

    def as_call(self, values):
        """The states as a call of the layer takes and returns them: h or (h, c)."""
        return values[0] if len(values) == 1 else tuple(values)


def check_stepwise(layers):
    """Raise InputError if a layer needs more than one time step to compute the output of one."""
    for layer in layers:
        if not layer.is_stepwise:
            raise InputError(f"{layer!r} mixes time steps, which a stream does not do")


def split_state(label, state, count, is_sequential):
    """The state of a stream as a list with the state of each of its `count` recurrent layers, or raise.

    Args:
        label: What begins the error message.
        state: That of the layer; for a Sequential a tuple of those of its recurrent layers.
        count: The number of recurrent layers.
        is_sequential: Whether the stream is one of a Sequential.
    """
    state = state if is_sequential else (state,)
    if not isinstance(state, (tuple, list)) or len(state) != count:
        raise InputTypeError(f"{label}: state is {describe_type(state)}, expected the states of {count} layers")
    return list(state)


def check_out(label, out, x):
    """Raise unless a result may be written to `out`: a contiguous, writeable array that shares no memory with x."""
    if not (isinstance(out, np.ndarray) and out.flags.carray):
        raise InputTypeError(f"{label}: out is {type(out).__name__}, expected a contiguous, writeable array")
    if np.may_share_memory(x, out):
        raise InputError(f"{label}: out shares memory with x")


def check_out_form(label, out, y):
    """Raise InputError unless `out` has the shape and type of the result y."""
    if out.shape != y.shape or out.dtype != y.dtype:
        raise InputError(f"{label}: out is {describe_array(out)}, expected {describe_array(y)}")


def describe_array(array):
    """An array's type and shape in words, for messages."""
    return f"{array.dtype} {list(array.shape)}"


def describe_type(value):
    """A value's type in words, with the length of a tuple or list."""
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__
