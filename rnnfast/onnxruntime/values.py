"""onnxruntime's values: arrays, and lists of them, as objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.onnx.tensors import type_name


class OrtDevice:
    """A device that values lie on: the CPU.

    Attributes:
        name: The name of the device.
    """

    def __init__(self, name: str = "cpu") -> None:
        self.name = check_device(name)

    @staticmethod
    def make(ort_device_name: str, device_id: int = 0, vendor_id: int = -1) -> OrtDevice:
        """Return a device.

        Args:
            ort_device_name: "cpu".
            device_id: Which of those devices; accepted, with no effect.
            vendor_id: Accepted, with no effect.

        Raises:
            UnsupportedError: It is another device.
        """
        return OrtDevice(ort_device_name)

    def device_id(self) -> int:
        """Return 0."""
        return 0

    def device_type(self) -> str:
        """Return "cpu"."""
        return self.name


class OrtValue:
    """A tensor, or a sequence of them. onnxruntime's and rnnfast's sessions take it as an input.

    A tensor shares its memory with the array that it was made of and with what `numpy()` returns, if that array was
    contiguous. DLPack works both ways: `numpy.from_dlpack(value)`, `OrtValue.from_dlpack(tensor)`.

    Args:
        value: A NumPy array of numbers or bool, a list of them, or None for an optional value that is absent.

    Raises:
        InputTypeError: The value is none of these.
    """

    def __init__(self, value: Any) -> None:
        if type(value) is list:
            self._value: Any = [_checked(member) for member in value]
        else:
            self._value = None if value is None else _checked(value)

    @classmethod
    def ortvalue_from_numpy(
        cls, numpy_obj: np.ndarray, /, device_type: str = "cpu", device_id: int = 0, vendor_id: int = -1
    ) -> OrtValue:
        """Return the array as an OrtValue, on its memory where it is contiguous.

        Args:
            numpy_obj: The array.
            device_type: "cpu".
            device_id: Accepted, with no effect.
            vendor_id: Accepted, with no effect.

        Raises:
            InputTypeError: It is no array of numbers.
            UnsupportedError: It is another device.
        """
        check_device(device_type)
        if not isinstance(numpy_obj, np.ndarray):
            raise InputTypeError(f"an OrtValue of {type(numpy_obj).__name__}, expected a NumPy array")
        return cls(numpy_obj)

    @classmethod
    def ortvalue_from_numpy_with_onnx_type(cls, data: np.ndarray, /, onnx_element_type: int) -> OrtValue:
        """Return the memory of an array as a tensor of another type, such as uint16 as bfloat16.

        Args:
            data: The array.
            onnx_element_type: The number of the type in ONNX's TensorProto.DataType.

        Raises:
            InputError: The elements of that type do not have as many bytes.
            InputTypeError: There is no such type.
        """
        dtype = dtype_of(onnx_element_type)
        if dtype.itemsize != data.dtype.itemsize:
            raise InputError(f"elements of {data.dtype.itemsize} bytes as {type_name(dtype)} of {dtype.itemsize}")
        return cls(np.require(data, requirements="C").view(dtype))

    @classmethod
    def ortvalue_from_shape_and_type(
        cls,
        shape: Sequence[int],
        element_type: Any,
        device_type: str = "cpu",
        device_id: int = 0,
        vendor_id: int = -1,
        memory_info: Any = None,
    ) -> OrtValue:
        """Return a tensor of zeros.

        Args:
            shape: Its shape.
            element_type: The dtype of its elements, or the number of ONNX's type.
            device_type: "cpu".
            device_id: Accepted, with no effect.
            vendor_id: Accepted, with no effect.
            memory_info: Accepted, with no effect.

        Raises:
            InputError: The shape is none.
            InputTypeError: There is no such type.
            UnsupportedError: It is another device.
        """
        check_device(device_type)
        return cls(np.zeros(check_shape(shape), dtype_of(element_type)))

    @classmethod
    def from_dlpack(cls, data: Any, /) -> OrtValue:
        """Return a tensor on the memory of an object that has `__dlpack__`, such as one of torch.

        Args:
            data: The object, on the CPU.

        Raises:
            InputTypeError: It has no `__dlpack__`, or NumPy cannot take what that gives.
        """
        try:
            return cls(np.from_dlpack(data))
        except (AttributeError, BufferError, RuntimeError, TypeError) as e:
            raise InputTypeError(f"{type(data).__name__} cannot be taken by DLPack: {e}") from e

    @classmethod
    def ort_value_from_sparse_tensor(cls, sparse_tensor: Any) -> NoReturn:
        """Refuse a sparse tensor.

        Args:
            sparse_tensor: The tensor.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("sparse tensors are not supported")

    def numpy(self) -> np.ndarray:
        """Return the tensor as an array on the same memory.

        Raises:
            InputTypeError: It is not a tensor.
        """
        if not isinstance(self._value, np.ndarray):
            raise InputTypeError(f"the OrtValue is {self.data_type()}, expected a tensor")
        return self._value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.numpy().__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.numpy().__dlpack_device__()

    def update_inplace(self, data: np.ndarray) -> None:
        """Write other numbers into the tensor's memory.

        Args:
            data: An array of its type with as many elements.

        Raises:
            InputError: It does not have as many elements, or the memory is read-only.
            InputTypeError: It has another type.
        """
        array, data = self.numpy(), np.asarray(data)
        if data.dtype != array.dtype:
            raise InputTypeError(f"{type_name(data.dtype)} for an OrtValue of {type_name(array.dtype)}")
        if data.size != array.size:
            raise InputError(f"{data.size} elements for an OrtValue of {array.size}")
        if not array.flags.writeable:
            raise InputError("the OrtValue is on memory that is read-only")
        array[...] = data.reshape(array.shape)

    def data_ptr(self) -> int:
        """Return the address of the first element."""
        return self.numpy().ctypes.data

    def device_name(self) -> str:
        """Return "cpu"."""
        return "cpu"

    def shape(self) -> list[int]:
        """Return the shape of the tensor."""
        return list(self.numpy().shape)

    def tensor_size_in_bytes(self) -> int:
        """Return the bytes of all elements."""
        return self.numpy().nbytes

    def element_type(self) -> int:
        """Return the number of the elements' type in ONNX's TensorProto.DataType."""
        import onnx

        return int(onnx.helper.np_dtype_to_tensor_dtype(self.numpy().dtype))

    def data_type(self) -> str:
        """Return the type as onnxruntime writes it: tensor(float), seq(tensor(int64))."""
        if self._value is None:
            return "optional()"
        if isinstance(self._value, list):
            return f"seq({OrtValue(self._value[0]).data_type() if self._value else 'tensor(float)'})"
        return f"tensor({type_name(self._value.dtype)})"

    def has_value(self) -> bool:
        """Return whether there is a value: not so for an optional one that is absent."""
        return self._value is not None

    def is_tensor(self) -> bool:
        """Return whether it is a tensor."""
        return isinstance(self._value, np.ndarray)

    def is_tensor_sequence(self) -> bool:
        """Return whether it is a sequence of tensors."""
        return isinstance(self._value, list)

    def is_sparse_tensor(self) -> bool:
        """Return False."""
        return False

    def as_sparse_tensor(self) -> NoReturn:
        """Refuse to make a sparse tensor.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("sparse tensors are not supported")


class SparseTensor:
    """A name for annotations and isinstance: sparse tensors are not supported.

    Raises:
        UnsupportedError: Always.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        raise UnsupportedError("sparse tensors are not supported")

    @staticmethod
    def sparse_coo_from_numpy(*args: Any, **options: Any) -> NoReturn:
        """Refuse to make one.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("sparse tensors are not supported")

    @staticmethod
    def sparse_csr_from_numpy(*args: Any, **options: Any) -> NoReturn:
        """Refuse to make one.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("sparse tensors are not supported")


def unwrapped(value: Any) -> Any:
    """Return what an OrtValue holds, and any other value as it is."""
    return value._value if isinstance(value, OrtValue) else value


def check_device(name: str) -> str:
    """Return the name of a device, which must be the CPU's."""
    if not isinstance(name, str):
        raise InputTypeError(f"the device is {type(name).__name__}, expected str")
    if name.lower() != "cpu":
        raise UnsupportedError(f"device {name!r}: rnnfast runs on the CPU")
    return "cpu"


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape as a tuple of sizes."""
    try:
        sizes = tuple(int(n) for n in shape)
    except TypeError as e:
        raise InputTypeError(f"the shape is {shape!r}, expected a sequence of int") from e
    if any(n < 0 for n in sizes):
        raise InputError(f"the shape is {list(sizes)}, expected sizes of 0 or more")
    return sizes


def dtype_of(element_type: Any) -> np.dtype:
    """Return the dtype that a caller means by a dtype or by the number of ONNX's type."""
    import onnx

    try:
        if type(element_type) is int:
            return onnx.helper.tensor_dtype_to_np_dtype(element_type)
        dtype = np.dtype(element_type)
        onnx.helper.np_dtype_to_tensor_dtype(dtype)
        return dtype
    except (KeyError, TypeError, ValueError) as e:
        raise InputTypeError(f"element type {element_type!r} is no dtype of NumPy or number of ONNX's types") from e


def _checked(array: Any) -> np.ndarray:
    """Return an array of numbers as a contiguous one."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufV":
        what = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputTypeError(f"an OrtValue of {what}, expected a NumPy array of numbers")
    return np.require(array, requirements="C")
