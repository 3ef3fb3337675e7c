"""onnxruntime's IOBinding: inputs and outputs that are bound once, for many runs."""

from __future__ import annotations

import copy
import ctypes
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.inputs import validate
from rnnfast.onnx.tensors import type_name
from rnnfast.onnxruntime.values import OrtValue, check_device, check_shape, dtype_of

if TYPE_CHECKING:
    from rnnfast.onnxruntime.session import InferenceSession


class IOBinding:
    """The inputs and outputs of runs of a session, which `InferenceSession.run_with_iobinding` uses.

    A bound array, OrtValue or buffer is read, or written, at each run, so that a program may change its inputs in place
    between two runs.

    Args:
        session: The session.
    """

    def __init__(self, session: InferenceSession) -> None:
        self._input_types = {v.name: v.type for v in session.model.inputs}
        self._output_types = {v.name: v.type for v in session.model.outputs}
        self.inputs: dict[str, Any] = {}
        # The name of an output -> the array that a run writes it to, or None for a new one.
        self.targets: dict[str, np.ndarray | None] = {}
        self._outputs: list[OrtValue] = []

    # ---------------------------------------------------------------------------------------------- inputs
    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """Bind an array to an input.

        Args:
            name: The input.
            arr_on_cpu: The array. It is not copied if it has the declared type.

        Raises:
            InputError: There is no such input, or the array does not have a shape that the file allows.
            InputTypeError: The array has a wrong type.
        """
        self.inputs[name] = validate(arr_on_cpu, self._input_type(name), f"input {name!r}")

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        """Bind memory to an input. Nothing shows that the address is right: a wrong one crashes the process.

        Args:
            name: The input.
            device_type: "cpu".
            device_id: Accepted, with no effect.
            element_type: The dtype of the elements, or the number of ONNX's type.
            shape: The shape.
            buffer_ptr: The address of the first element of contiguous memory, which the caller keeps.

        Raises:
            InputError: There is no such input, the shape is not one that the file allows, or the address is 0.
            InputTypeError: The type is not the declared one, or the address is no int.
            UnsupportedError: It is another device.
        """
        check_device(device_type)
        expected = self._input_type(name)
        self.inputs[name] = validate(_on_memory(name, element_type, shape, buffer_ptr), expected, f"input {name!r}")

    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None:
        """Bind an OrtValue to an input.

        Args:
            name: The input.
            ortvalue: The value.

        Raises:
            InputError: There is no such input, or the value does not have a shape that the file allows.
            InputTypeError: It is no OrtValue, or has a wrong type.
        """
        if not isinstance(ortvalue, OrtValue):
            raise InputTypeError(f"input {name!r} is {type(ortvalue).__name__}, expected an OrtValue")
        self.inputs[name] = validate(ortvalue._value, self._input_type(name), f"input {name!r}")

    def clear_binding_inputs(self) -> None:
        """Forget all inputs."""
        self.inputs = {}

    def synchronize_inputs(self) -> None:
        """Do nothing: all memory is the CPU's."""

    # --------------------------------------------------------------------------------------------- outputs
    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Any = None,
        buffer_ptr: int | None = None,
    ) -> None:
        """Ask for an output, in memory of the caller or in a new array at each run.

        Args:
            name: The output.
            device_type: "cpu".
            device_id: Accepted, with no effect.
            element_type: The dtype of the elements, or the number of ONNX's type.
            shape: The shape.
            buffer_ptr: The address of contiguous memory that runs write to, which the caller keeps; None for a new
                array. Nothing shows that the address is right: a wrong one corrupts the process.

        Raises:
            InputError: There is no such output, or the address is 0.
            InputTypeError: The type is not the declared one, or the address is no int.
            UnsupportedError: It is another device.
        """
        check_device(device_type)
        target = None if buffer_ptr is None else _on_memory(name, element_type, shape, buffer_ptr)
        self._bind_target(name, target)

    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None:
        """Ask for an output in the memory of an OrtValue.

        Args:
            name: The output.
            ortvalue: A tensor.

        Raises:
            InputError: There is no such output.
            InputTypeError: It is no OrtValue with a tensor, or its type is not the declared one.
        """
        if not isinstance(ortvalue, OrtValue):
            raise InputTypeError(f"output {name!r} is {type(ortvalue).__name__}, expected an OrtValue")
        self._bind_target(name, ortvalue.numpy())

    def clear_binding_outputs(self) -> None:
        """Forget all outputs, and the results of the last run."""
        self.targets, self._outputs = {}, []

    def synchronize_outputs(self) -> None:
        """Do nothing: a run has ended when it returns."""

    def get_outputs(self) -> list[OrtValue]:
        """Return the outputs of the last run, in the order in which they were bound."""
        return list(self._outputs)

    def copy_outputs_to_cpu(self) -> list[Any]:
        """Return the outputs of the last run as new arrays."""
        return [copy.deepcopy(value._value) for value in self._outputs]

    def write(self, results: list[Any]) -> None:
        """Write the results of a run to their targets; all of them or, where one does not fit, none.

        Args:
            results: A new value for each output that is bound.

        Raises:
            InputError: A result does not have the shape of the memory that is bound, or that is read-only.
        """
        for (name, target), result in zip(self.targets.items(), results):
            if target is not None:
                if target.shape != result.shape:
                    raise InputError(
                        f"output {name!r} is {list(result.shape)}, the memory bound to it {list(target.shape)}"
                    )
                if not target.flags.writeable:
                    raise InputError(f"output {name!r} is bound to memory that is read-only")
        for target, result in zip(self.targets.values(), results):
            if target is not None:
                target[...] = result
        self._outputs = [
            OrtValue(result if target is None else target) for target, result in zip(self.targets.values(), results)
        ]

    # ---------------------------------------------------------------------------------------------- checks
    def _input_type(self, name: str) -> Any:
        """Return the declared type of an input."""
        if name not in self._input_types:
            raise InputError(f"there is no input {name!r}, only {list(self._input_types)}")
        return self._input_types[name]

    def _bind_target(self, name: str, target: np.ndarray | None) -> None:
        """Bind the memory to an output, if that has its type."""
        if name not in self._output_types:
            raise InputError(f"there is no output {name!r}, only {list(self._output_types)}")
        dtype = self._output_types[name].dtype
        if target is not None and dtype is not None and target.dtype != dtype:
            raise InputTypeError(
                f"output {name!r} is {type_name(dtype)}, the memory bound to it {type_name(target.dtype)}"
            )
        self.targets[name] = target


def _on_memory(name: str, element_type: Any, shape: Any, address: int) -> np.ndarray:
    """Return an array on contiguous memory of the caller."""
    if type(address) is not int:
        raise InputTypeError(f"the address of {name!r} is {type(address).__name__}, expected int")
    dtype, shape = dtype_of(element_type), check_shape(shape)
    nbytes = math.prod(shape) * dtype.itemsize
    if address <= 0 and nbytes or address % dtype.alignment:
        raise InputError(f"the address of {name!r} is {address}, which is not one of {type_name(dtype)}")
    if not nbytes:
        return np.empty(shape, dtype)
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype).reshape(shape)
