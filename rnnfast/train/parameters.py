"""All parameters of a network in one flat vector, and all gradients in another."""

import numpy as np

from rnnfast.errors import InputError, UnsupportedError
from rnnfast.nn.module import layers_of


class Parameters:
    """values, gradients: float32 vectors, in the order of the network's state dict."""

    def __init__(self, net):
        self.net = net
        state = net.state_dict()
        if not state:
            raise InputError(f"{net!r} has no parameters to train")
        layers = [layer for layer in layers_of(net) if layer.shapes()]
        for i, layer in enumerate(layers):
            if any(layer is other for other in layers[:i]):
                raise UnsupportedError(
                    f"{layer!r} stands in {net!r} more than once: training of shared weights is not "
                    "supported, expected another layer for each place"
                )
        ends = np.cumsum([a.size for a in state.values()]).tolist()
        self.places = {name: (end - a.size, end, a.shape) for (name, a), end in zip(state.items(), ends, strict=True)}
        self.values = np.concatenate([a.ravel() for a in state.values()])
        self.gradients = np.empty_like(self.values)
        self._gradients = self.views(self.gradients)

    def views(self, vector):
        """The vector's parts by name."""
        return {name: vector[start:end].reshape(shape) for name, (start, end, shape) in self.places.items()}

    def gather(self, dweights):
        for name, view in self._gradients.items():
            view[...] = dweights[name]

    def load(self):
        """The network takes the values, of which it gets a copy."""
        self.net._replace(self.net._prepare(self.views(self.values.copy())))

    def wrong_gradient(self):
        """The first parameter whose gradient is not finite."""
        return next((name for name, view in self._gradients.items() if not np.isfinite(view).all()), None)
