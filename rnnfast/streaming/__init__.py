"""Live streams of models and layers, one at a time and many in a pool."""
