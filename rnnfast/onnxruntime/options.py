"""onnxruntime's options of sessions and of runs."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rnnfast.errors import FieldError, InputError, InputTypeError, UnsupportedError
from rnnfast.native._interrupts import Flag
from rnnfast.onnxruntime.values import OrtValue


class GraphOptimizationLevel(enum.IntEnum):
    """onnxruntime's optimization levels. ORT_DISABLE_ALL is `recognise_cells=False` of `rnnfast.load`; the others are
    the same to rnnfast.
    """

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(enum.IntEnum):
    """onnxruntime's execution modes. They are accepted, but rnnfast always runs nodes one after the other."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class ExecutionOrder(enum.IntEnum):
    """onnxruntime's orders of nodes. They are accepted and have no effect."""

    DEFAULT = 0
    PRIORITY_BASED = 1
    MEMORY_EFFICIENT = 2


class _Options:
    """Options whose fields are all made in `__init__`; another one is refused, as it would have no effect."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not hasattr(self, name):
            fields = sorted(field for field in vars(self) if not field.startswith("_"))
            raise FieldError(f"{type(self).__name__} has no field {name!r}, only {', '.join(fields)}")
        object.__setattr__(self, name, value)


class SessionOptions(_Options):
    """onnxruntime's session options.

    These have an effect: `intra_op_num_threads`, `weights`, `activations`, `matmul`, `enable_profiling` with
    `profile_file_prefix`, the overrides of dimensions, and the initializers that are added. The others are accepted and
    stored; no field can be set that is not here. Nothing is logged.

    Attributes:
        intra_op_num_threads: The most threads that a call may use; 0 for the default. See `rnnfast.load`.
        weights: The type to which weights are rounded; None for none. This and the next two are rnnfast's own; see
            `rnnfast.load`.
        activations: The bits to which int8 weights round what they multiply; None for the default.
        matmul: How matrix products are computed.
        enable_profiling: Whether the session writes a trace of its runs. See `InferenceSession.end_profiling`.
        profile_file_prefix: The beginning of the name of the trace.
    """

    def __init__(self) -> None:
        vars(self).update(
            weights=None,
            activations=None,
            matmul=None,
            intra_op_num_threads=0,
            inter_op_num_threads=0,
            graph_optimization_level=GraphOptimizationLevel.ORT_ENABLE_ALL,
            execution_mode=ExecutionMode.ORT_SEQUENTIAL,
            execution_order=ExecutionOrder.DEFAULT,
            enable_cpu_mem_arena=True,
            enable_mem_pattern=True,
            enable_mem_reuse=True,
            enable_profiling=False,
            profile_file_prefix="rnnfast_profile",
            optimized_model_filepath="",
            log_severity_level=-1,
            log_verbosity_level=0,
            logid="",
            use_deterministic_compute=True,
            use_per_session_threads=True,
            _entries={},
            _dimensions={},
            _denotations={},
            _initializers={},
            _files={},
        )

    weights: Literal["int8", "fp16", "bf16"] | None
    activations: Literal[15, 8] | None
    matmul: Literal["packed", "blas"] | None
    intra_op_num_threads: int
    enable_profiling: bool
    profile_file_prefix: str
    _entries: dict[str, str]
    _dimensions: dict[str, int]  # the name of a dimension -> its size
    _denotations: dict[str, int]  # the denotation of a dimension -> its size
    _initializers: dict[str, tuple[OrtValue, bool]]  # name -> the value, and whether the file's must be external data
    _files: dict[str, bytes]  # the location of external data -> the contents of that file

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Store a configuration entry, which has no effect.

        Args:
            key: The name of the entry.
            value: Its value.
        """
        self._entries[key] = value

    def get_session_config_entry(self, key: str) -> str:
        """Return a configuration entry.

        Args:
            key: The name of the entry.

        Returns:
            The value that was stored.

        Raises:
            InputError: There is no such entry.
        """
        return _entry(self._entries, key, "session")

    def has_session_config_entry(self, key: str) -> bool:
        """Return whether a configuration entry was stored.

        Args:
            key: The name of the entry.

        Returns:
            True if there is such an entry.
        """
        return key in self._entries

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Give a dimension of the inputs, which the file only names, a size that all calls must have.

        Args:
            name: The name of the dimension, as `NodeArg.shape` has it. A name that the file does not use has no effect.
            size: Its size.

        Raises:
            InputError: The size is negative.
            InputTypeError: The size is not an integer.
        """
        self._dimensions[name] = _size(name, size)

    def add_free_dimension_override_by_denotation(self, denotation: str, size: int) -> None:
        """Give dimensions of the inputs of this denotation, such as DATA_BATCH, a size that all calls must have.

        Args:
            denotation: The denotation, as the file has it. One that the file does not use has no effect.
            size: The size.

        Raises:
            InputError: The size is negative.
            InputTypeError: The size is not an integer.
        """
        self._denotations[denotation] = _size(denotation, size)

    def add_initializer(self, name: str, value: OrtValue) -> None:
        """Replace an initializer of the file.

        Args:
            name: The initializer. A name that the file does not have has no effect.
            value: Its value, of the same type and shape.

        Raises:
            InputTypeError: The value is not an OrtValue with a tensor.
        """
        self._initializers[name] = _tensor(name, value), False

    def add_external_initializers(self, names: Sequence[str], values: Sequence[OrtValue]) -> None:
        """Replace initializers that the file stores as external data, so that those files are not read.

        Args:
            names: The initializers.
            values: The value of each, of the same type and shape.

        Raises:
            InputError: There are not as many values as names.
            InputTypeError: A value is not an OrtValue with a tensor.
        """
        if len(names) != len(values):
            raise InputError(f"{len(names)} names of initializers and {len(values)} values")
        values = [_tensor(name, value) for name, value in zip(names, values)]
        self._initializers.update(zip(names, [(value, True) for value in values]))

    def add_external_initializers_from_files_in_memory(
        self, names: Sequence[str], buffers: Sequence[Any], lengths: Sequence[int]
    ) -> None:
        """Give the contents of files of external data, so that those files are not read.

        Args:
            names: The location of each file, as the model has it.
            buffers: The contents of each file: bytes, or another object with the buffer protocol.
            lengths: The number of bytes of each file.

        Raises:
            InputError: There are not as many names as buffers and lengths, or a buffer has fewer bytes than its length.
            InputTypeError: A buffer does not have the buffer protocol.
        """
        if not len(names) == len(buffers) == len(lengths):
            raise InputError(f"{len(names)} names of files, {len(buffers)} buffers and {len(lengths)} lengths")
        files = {}
        for name, buffer, length in zip(names, buffers, lengths):
            try:
                contents = bytes(memoryview(buffer).cast("B")[:length])
            except TypeError as e:
                raise InputTypeError(f"the contents of {name!r} are {type(buffer).__name__}, expected a buffer") from e
            if len(contents) != length:
                raise InputError(f"the contents of {name!r} have {len(contents)} bytes, fewer than {length}")
            files[name] = contents
        self._files.update(files)

    def register_custom_ops_library(self, path: str) -> None:
        """Refuse a library of custom operators.

        Args:
            path: The path of the library.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(f"custom operators ({path}) are not supported")

    def add_provider(self, name: str, options: Mapping[str, str]) -> None:
        """Accept an execution provider, which has no effect: rnnfast runs on the CPU.

        Args:
            name: The name of the provider.
            options: Its options.
        """


class RunOptions(_Options):
    """onnxruntime's run options. All but `terminate` are accepted and stored, and have no effect.

    Attributes:
        terminate: True ends a run with these options, also one in progress on another thread, and each later one. The
            run raises TerminatedError within some 50 ms; a NumPy function that it is in is not interrupted.
    """

    def __init__(self) -> None:
        vars(self).update(
            _terminate=Flag(),
            _entries={},
            log_severity_level=-1,
            log_verbosity_level=0,
            logid="",
            only_execute_path_to_fetches=False,
            training_mode=False,
        )

    _terminate: Flag
    _entries: dict[str, str]

    @property
    def terminate(self) -> bool:
        return bool(self._terminate)

    @terminate.setter
    def terminate(self, value: bool) -> None:
        self._terminate.set(value)

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Store a configuration entry, which has no effect.

        Args:
            key: The name of the entry.
            value: Its value.
        """
        self._entries[key] = value

    def get_run_config_entry(self, key: str) -> str:
        """Return a configuration entry.

        Args:
            key: The name of the entry.

        Returns:
            The value that was stored.

        Raises:
            InputError: There is no such entry.
        """
        return _entry(self._entries, key, "run")


def _entry(entries: Mapping[str, str], key: str, what: str) -> str:
    """Return a configuration entry of a session or run, which must have been stored."""
    if key not in entries:
        raise InputError(f"no {what} configuration entry {key!r}")
    return entries[key]


def _size(name: str, size: int) -> int:
    """Return the size of a dimension, checked."""
    if type(size) is not int:
        raise InputTypeError(f"the size of dimension {name!r} is {type(size).__name__}, expected int")
    if size < 0:
        raise InputError(f"the size of dimension {name!r} is {size}, expected 0 or more")
    return size


def _tensor(name: str, value: OrtValue) -> OrtValue:
    """Return the value of an initializer, checked."""
    if not isinstance(value, OrtValue) or not value.is_tensor():
        raise InputTypeError(f"the value of initializer {name!r} is {type(value).__name__}, expected an OrtValue")
    return value
