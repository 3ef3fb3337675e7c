"""Runs of a model as native commands, compared with the operators' NumPy functions."""

import numpy as np

from rnnfast.native import _programs

RNG = np.random.default_rng(5)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 3.5, -2.5, 0.5, 1e30, -1e-30], np.float32)


def plain(model, **feed):
    """Return the outputs of a model whose steps are all NumPy's, except those with packed weights."""
    planned, args = model.prepare(feed)
    planned = model.build()
    planned.target = None
    return planned.run(args)


def plan_of(model):
    (plan,) = model.planned.plans.kept
    return plan


def segment_of(model):
    """Return the one native step of a model's plan."""
    ((run, *_),) = plan_of(model).steps
    assert isinstance(run, _programs.NativeProgram), plan_of(model).steps
    return run


def compare(model, tolerance=0, **feed):
    """Check that a model is one native step with NumPy's results, to the bit or to a tolerance."""
    outputs = list(model(feed).values())
    segment_of(model)
    for y, expected in zip(outputs, plain(model, **feed)):
        assert (y.dtype, y.shape) == (expected.dtype, expected.shape) and y.flags.owndata and y.flags.writeable
        if tolerance:
            np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(y, expected)
    return outputs
