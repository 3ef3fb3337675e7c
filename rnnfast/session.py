"""onnxruntime's names for a Model, so that a program can move to rnnfast by changing an import."""

from __future__ import annotations

import enum
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.model import Model
from rnnfast.native._interrupts import Flag, within
from rnnfast.onnx.graph import Graph, Source, Value

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PROVIDERS = ["CPUExecutionProvider"]
# Keywords of an InferenceSession: those of Model, and those that onnxruntime reads.
KEYWORDS = {p.name for p in inspect.signature(Model).parameters.values() if p.kind is p.KEYWORD_ONLY}
WITHOUT_EFFECT = {"disabled_optimizers", "enable_fallback", "read_config_from_model"}


class GraphOptimizationLevel(enum.IntEnum):
    """onnxruntime's optimization levels. They are accepted, but rnnfast runs the same graph at every level."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(enum.IntEnum):
    """onnxruntime's execution modes. They are accepted, but rnnfast always runs nodes one after the other."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class SessionOptions:
    """onnxruntime's session options.

    Two of them have an effect; the others are accepted and stored. Nothing is logged or profiled.

    Attributes:
        intra_op_num_threads: The most threads that a call may use; 0 for the default. See `rnnfast.load`.
        matmul: How matrix products are computed. This one is rnnfast's own; see `rnnfast.load`.
    """

    def __init__(self) -> None:
        self.matmul: Literal["packed", "blas"] | None = None
        self.intra_op_num_threads = 0
        self.inter_op_num_threads = 0
        self.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
        self.execution_mode = ExecutionMode.ORT_SEQUENTIAL
        self.execution_order = 0
        self.enable_cpu_mem_arena = True
        self.enable_mem_pattern = True
        self.enable_mem_reuse = True
        self.enable_profiling = False
        self.profile_file_prefix = "rnnfast_profile"
        self.optimized_model_filepath = ""
        self.log_severity_level = -1
        self.log_verbosity_level = 0
        self.logid = ""
        self.use_deterministic_compute = True
        self.use_per_session_threads = True
        self._entries: dict[str, str] = {}

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
        if key not in self._entries:
            raise InputError(f"no session configuration entry {key!r}")
        return self._entries[key]

    def has_session_config_entry(self, key: str) -> bool:
        """Return whether a configuration entry was stored.

        Args:
            key: The name of the entry.

        Returns:
            True if there is such an entry.
        """
        return key in self._entries

    def register_custom_ops_library(self, path: str) -> None:
        """Refuse a library of custom operators.

        Args:
            path: The path of the library.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(f"custom operators ({path}) are not supported")


class RunOptions:
    """onnxruntime's run options. All but `terminate` are accepted and stored, and have no effect.

    Attributes:
        terminate: True ends a run with these options, also one in progress on another thread, and each later one. The
            run raises TerminatedError within some 50 ms; a NumPy function that it is in is not interrupted.
    """

    def __init__(self) -> None:
        self._terminate = Flag()
        self.log_severity_level = -1
        self.log_verbosity_level = 0
        self.logid = ""
        self.only_execute_path_to_fetches = False
        self.training_mode = False

    @property
    def terminate(self) -> bool:
        return bool(self._terminate)

    @terminate.setter
    def terminate(self, value: bool) -> None:
        self._terminate.set(value)

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Accept a configuration entry, which has no effect.

        Args:
            key: The name of the entry.
            value: Its value.
        """


class NodeArg:
    """An input or output of a model.

    Attributes:
        name: Its name.
        type: Its type as a string, such as `tensor(float)`.
        shape: For each dimension an int, a str for a dimension that the file names, or None for one that it leaves
            open; an empty list if the file gives no shape.
    """

    def __init__(self, value: Value) -> None:
        self.name = value.name
        self.type = str(value.type)
        self.shape = list(value.type.shape or ())

    def __repr__(self) -> str:
        return f"NodeArg(name={self.name!r}, type={self.type!r}, shape={self.shape})"


class ModelMetadata:
    """The metadata of a model file.

    Attributes:
        producer_name: The name and version of the program that wrote the file.
        description: The model's documentation string.
        graph_name: The name of the graph.
        custom_metadata_map: The metadata properties by key.
    """

    def __init__(self, source: Source, graph: Graph) -> None:
        self.producer_name = source.producer
        self.description = source.doc_string
        self.graph_name = graph.name
        self.custom_metadata_map = dict(source.metadata)


class InferenceSession:
    """A Model under onnxruntime's names.

    Args:
        path_or_bytes: The path of an ONNX file, or the file's bytes.
        sess_options: Options; None for the defaults.
        providers: Accepted, with no effect: rnnfast runs on the CPU.
        provider_options: Accepted, with no effect.
        **kwargs: The keywords of `rnnfast.load`, such as `threads` and `matmul`; and onnxruntime's own
            `disabled_optimizers`, `enable_fallback` and `read_config_from_model`, which have no effect.

    Raises:
        ModelError: The source cannot be read or is not a correct ONNX model.
        UnsupportedError: The graph needs something that rnnfast does not compute.
        LimitError: The file takes more than the limits allow, or is nested too deeply.
        InputError: An option has a value that is not allowed, or `sess_options` and a keyword give different ones.
        InputTypeError: A keyword is neither rnnfast's nor onnxruntime's, or the number of threads is not an integer.

    Attributes:
        model: The Model that runs.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self._options = sess_options if sess_options is not None else SessionOptions()
        settings = {name: value for name, value in kwargs.items() if name not in WITHOUT_EFFECT}
        unknown = sorted(settings.keys() - KEYWORDS)
        if unknown:
            known = ", ".join(sorted(KEYWORDS | WITHOUT_EFFECT))
            raise InputTypeError(f"InferenceSession has no argument {unknown[0]!r}: its keywords are {known}")
        # onnxruntime's own SessionOptions are accepted too; they have no `matmul`.
        threads = getattr(self._options, "intra_op_num_threads", 0)
        options = {
            "matmul": getattr(self._options, "matmul", None),
            "threads": None if type(threads) is int and threads == 0 else threads,
        }
        for name, value in options.items():
            if settings.get(name) is None:
                settings[name] = value
            elif value not in (None, settings[name]):
                raise InputError(f"{name} is {settings[name]!r}, but {value!r} in sess_options")
        self.model = Model(path_or_bytes, **settings)
        self._names = [v.name for v in self.model.outputs]

    def __getstate__(self) -> dict[str, Any]:
        """The model, pickled as a Model is, and the options as rnnfast's own, as onnxruntime's cannot be pickled."""
        options = SessionOptions()
        for name in vars(options):
            setattr(options, name, getattr(self._options, name, getattr(options, name)))
        return vars(self) | {"_options": options}

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, ArrayLike],
        run_options: RunOptions | None = None,
    ) -> list[Any]:
        """Run the model.

        Args:
            output_names: A list of the names of the outputs to return; None or an empty list for all of them.
            input_feed: Inputs by name. Arrays must have the dtype and fit the shape that the file declares.
            run_options: Options; None for the defaults. Setting its `terminate` ends the run.

        Returns:
            The outputs in the order of `output_names`, or of the file: new arrays that share no memory with the
            inputs.

        Raises:
            InputError: An input is missing or unknown, has a wrong shape or a value that does not fit, or there is no
                output of a given name.
            InputTypeError: An input has a wrong type, or `output_names` is not a list of str.
            LimitError: The call takes more than the limits allow; see `Model.__call__`.
            TerminatedError: `run_options.terminate` was set before or during the run.
        """
        if output_names is None:
            return self._run_all(input_feed, run_options)
        if not isinstance(output_names, (list, tuple)) or not all(type(name) is str for name in output_names):
            raise InputTypeError(f"output names are {type(output_names).__name__}, expected a list of str or None")
        for name in output_names:
            if name not in self._names:
                raise InputError(f"there is no output {name!r}, only {self._names}")
        outputs = self._run_all(input_feed, run_options)
        if not output_names or output_names == self._names:
            return outputs
        by_name = dict(zip(self._names, outputs))
        return [by_name[name] for name in output_names]

    def _run_all(self, input_feed: Mapping[str, ArrayLike], run_options: RunOptions | None) -> list[Any]:
        """Run the model with all outputs, until the `terminate` of the options is set."""
        if run_options is None:
            return self.model.run(input_feed)
        flag = getattr(run_options, "_terminate", None)
        if not isinstance(flag, Flag):  # onnxruntime's own options: what they say now
            flag = Flag()
            flag.set(getattr(run_options, "terminate", False))
        return within(None, flag, self.model.run, input_feed)

    def get_inputs(self) -> list[NodeArg]:
        """Return the inputs that every call must give: those without an initializer.

        Returns:
            The inputs in the order of the file.
        """
        required = set(self.model.required_inputs)
        return [NodeArg(v) for v in self.model.inputs if v.name in required]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Return the inputs that have an initializer, which a call may override.

        Returns:
            The inputs in the order of the file.
        """
        required = set(self.model.required_inputs)
        return [NodeArg(v) for v in self.model.inputs if v.name not in required]

    def get_outputs(self) -> list[NodeArg]:
        """Return the outputs.

        Returns:
            The outputs in the order of the file.
        """
        return [NodeArg(v) for v in self.model.outputs]

    def get_modelmeta(self) -> ModelMetadata:
        """Return the metadata of the file.

        Returns:
            The metadata.
        """
        return ModelMetadata(self.model.source, self.model.graph)

    def get_session_options(self) -> SessionOptions:
        """Return the options that the session was made with.

        Returns:
            The options.
        """
        return self._options

    def get_providers(self) -> list[str]:
        """Return the names of the execution providers.

        Returns:
            `["CPUExecutionProvider"]`.
        """
        return list(PROVIDERS)

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """Return the options of the execution providers.

        Returns:
            The provider's name with no options.
        """
        return {name: {} for name in PROVIDERS}

    def set_providers(
        self,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
    ) -> None:
        """Accept other providers, which has no effect: rnnfast runs on the CPU.

        Args:
            providers: Names of providers, each alone or with its options.
            provider_options: Options of each provider.
        """


def get_available_providers() -> list[str]:
    """Return the names of the execution providers that rnnfast has.

    Returns:
        `["CPUExecutionProvider"]`.
    """
    return list(PROVIDERS)


def get_device() -> str:
    """Return the device that rnnfast runs on.

    Returns:
        `"CPU"`.
    """
    return "CPU"
