"""Native programs for the steps of a plan: emitters of commands for each operator, and the joining of steps."""

from rnnfast.onnx.compile.steps import Step, compiled

__all__ = ["Step", "compiled"]
