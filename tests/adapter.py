"""What the suites of ../shared/vectors call: run(model bytes, inputs) -> outputs in the graph's order."""

import rnnfast


def run(model, inputs):
    return list(rnnfast.load(model)(inputs).values())
