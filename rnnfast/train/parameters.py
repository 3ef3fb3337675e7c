"""All parameters of a network in one flat vector, and all gradients in another.

Those that have gradients come first; behind them are buffers, such as the running means of BatchNorm1d.
"""

from __future__ import annotations

import numpy as np

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.nn.module import buffer_names, layers_of


class Parameters:
    """The parameters and gradients of a network: float32 vectors in the order of its state dict, with buffers last.

    Attributes:
        trained: The number of values that the optimizer changes, which are the first ones.
        values: The parameters, a copy; `load` gives them to the network.
        gradients: The gradients, as `gather` collected them.
        spans: Name of each parameter -> (start, end, shape) of its span in both vectors.
    """

    def __init__(self, net):
        self.net = net
        state = net.state_dict()
        if not state:
            raise InputError(f"{net!r} has no parameters to train")
        layers = [layer for layer in layers_of(net) if layer.shapes()]
        for i, layer in enumerate(layers):
            if any(layer is other for other in layers[:i]):
                raise UnsupportedError(
                    f"{layer!r} is in {net!r} more than once: training of shared weights is not "
                    "supported, expected another layer in each position"
                )
        buffers = buffer_names(net)
        state = dict(sorted(state.items(), key=lambda item: item[0] in buffers))
        self.trained = sum(a.size for name, a in state.items() if name not in buffers)
        ends = np.cumsum([a.size for a in state.values()]).tolist()
        self.spans = {name: (end - a.size, end, a.shape) for (name, a), end in zip(state.items(), ends, strict=True)}
        self.values = np.concatenate([a.ravel() for a in state.values()])
        self.gradients = np.empty_like(self.values)
        self._gradients = self.views(self.gradients)

    def views(self, vector):
        """Return views of the parameters' spans of a vector, by name."""
        return {name: vector[start:end].reshape(shape) for name, (start, end, shape) in self.spans.items()}

    def gather(self, dweights):
        """Copy gradients by name into the vector of gradients."""
        for name, view in self._gradients.items():
            view[...] = dweights[name]

    def move_buffers(self):
        """Subtract from the buffers what the gradients hold for them."""
        self.values[self.trained :] -= self.gradients[self.trained :]

    def load(self):
        """Load a copy of the values into the network."""
        self.net.replace_weights(self.net.prepare_weights(self.views(self.values.copy())))

    def wrong_gradient(self):
        """Return the name of the first parameter whose gradient is not finite, or None."""
        return next((name for name, view in self._gradients.items() if not np.isfinite(view).all()), None)
