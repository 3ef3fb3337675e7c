"""onnxruntime's InferenceSession on a Model, so that a program can move to rnnfast by changing an import."""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rnnfast.errors import Error, InputError, InputTypeError
from rnnfast.model import Model
from rnnfast.native._interrupts import Flag, within
from rnnfast.native._plans import separate
from rnnfast.onnx.graph import Graph, Source, Value
from rnnfast.onnxruntime.edits import editor
from rnnfast.onnxruntime.io_binding import IOBinding
from rnnfast.onnxruntime.options import GraphOptimizationLevel, RunOptions, SessionOptions
from rnnfast.onnxruntime.trace import Trace
from rnnfast.onnxruntime.values import OrtValue, unwrapped

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PROVIDERS = ["CPUExecutionProvider"]
# Keywords of an InferenceSession: those of Model, and those that onnxruntime reads.
KEYWORDS = {p.name for p in inspect.signature(Model).parameters.values() if p.kind is p.KEYWORD_ONLY} - {"edit"}
WITHOUT_EFFECT = {"disabled_optimizers", "enable_fallback", "read_config_from_model"}


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
        producer_name: The name of the program that wrote the file.
        domain: The domain of the model.
        version: The version of the model.
        description: The model's documentation string.
        graph_name: The name of the graph.
        graph_description: The graph's documentation string.
        custom_metadata_map: The metadata properties by key.
    """

    def __init__(self, source: Source, graph: Graph) -> None:
        self.producer_name = source.producer_name
        self.domain = source.domain
        self.version = source.model_version
        self.description = source.doc_string
        self.graph_name = graph.name
        self.graph_description = source.graph_doc_string
        self.custom_metadata_map = dict(source.metadata)


class InferenceSession:
    """A Model under onnxruntime's names.

    Args:
        path_or_bytes: The path of an ONNX file, or the file's bytes.
        sess_options: Options; None for the defaults.
        providers: Accepted, with no effect: rnnfast runs on the CPU.
        provider_options: Accepted, with no effect.
        **kwargs: The keywords of `rnnfast.load`, such as `threads` and `weights`; and onnxruntime's own
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
        # onnxruntime's own SessionOptions are accepted too; they do not have these.
        options = {name: getattr(self._options, name, None) for name in ("weights", "activations", "matmul")}
        threads = getattr(self._options, "intra_op_num_threads", 0)
        options["threads"] = None if type(threads) is int and threads == 0 else threads
        for name, value in options.items():
            if settings.get(name) is None:
                settings[name] = value
            elif value not in (None, settings[name]):
                raise InputError(f"{name} is {settings[name]!r}, but {value!r} in sess_options")
        if settings["activations"] is None:
            del settings["activations"]  # for the default
        level = getattr(self._options, "graph_optimization_level", None)
        if getattr(level, "name", None) == GraphOptimizationLevel.ORT_DISABLE_ALL.name:
            settings.setdefault("recognise_cells", False)
        begun = time.perf_counter_ns()
        self.model = Model(path_or_bytes, edit=editor(self._options), **settings)
        self._names = [v.name for v in self.model.outputs]
        self._trace: Trace | None = None
        if getattr(self._options, "enable_profiling", False):
            self._trace = Trace(self.model, self._options.profile_file_prefix, begun)

    def __getstate__(self) -> dict[str, Any]:
        """The model, pickled as a Model is, and the options as rnnfast's own, as onnxruntime's cannot be pickled.

        The copy has no trace.
        """
        options = SessionOptions()
        vars(options).update({name: getattr(self._options, name, value) for name, value in vars(options).items()})
        return vars(self) | {"_options": options, "_trace": None}

    def run(
        self,
        output_names: Iterable[str] | None,
        input_feed: Mapping[str, ArrayLike | OrtValue],
        run_options: RunOptions | None = None,
    ) -> list[Any]:
        """Run the model.

        Args:
            output_names: The names of the outputs to return, as any sequence of str; None or an empty one for all.
            input_feed: Inputs by name. Arrays must have the dtype and fit the shape that the file declares.
            run_options: Options; None for the defaults. Setting its `terminate` ends the run.

        Returns:
            The outputs in the order of `output_names`, or of the file: new arrays that share no memory with the
            inputs or each other.

        Raises:
            InputError: An input is missing or unknown, has a wrong shape or a value that does not fit, or there is no
                output of a given name.
            InputTypeError: An input has a wrong type, or `output_names` is not a sequence of str.
            LimitError: The call takes more than the limits allow; see `Model.__call__`.
            TerminatedError: `run_options.terminate` was set before or during the run.
        """
        if output_names is None:
            return self._run_all(input_feed, run_options)
        names = self._check_names(output_names)
        outputs = self._run_all(input_feed, run_options)
        if not names or names == self._names:
            return outputs
        by_name = dict(zip(self._names, outputs))
        selected = [by_name[name] for name in names]
        return selected if len(set(names)) == len(names) else separate(selected, [])

    def run_with_ort_values(
        self,
        output_names: Iterable[str] | None,
        input_dict_ort_values: Mapping[str, OrtValue],
        run_options: RunOptions | None = None,
    ) -> list[OrtValue]:
        """Run the model on OrtValues.

        Args:
            output_names: The names of the outputs to return, as for `run`.
            input_dict_ort_values: Inputs by name.
            run_options: Options, as for `run`.

        Returns:
            The outputs as OrtValues.

        Raises:
            InputTypeError: An input is not an OrtValue.
            Error: As `run` does.
        """
        for name, value in input_dict_ort_values.items():
            if not isinstance(value, OrtValue):
                raise InputTypeError(f"input {name!r} is {type(value).__name__}, expected an OrtValue")
        return [OrtValue(value) for value in self.run(output_names, input_dict_ort_values, run_options)]

    def io_binding(self) -> IOBinding:
        """Return a new IOBinding, to which inputs and outputs of this session are bound.

        Returns:
            The binding.
        """
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions | None = None) -> None:
        """Run the model on the inputs that are bound, and write the outputs that are bound.

        Args:
            iobinding: The binding.
            run_options: Options, as for `run`.

        Raises:
            InputError: No output is bound, or a result does not have the shape of the memory that is bound to it.
            InputTypeError: It is not an IOBinding of rnnfast.
            Error: As `run` does.
        """
        if not isinstance(iobinding, IOBinding):
            raise InputTypeError(f"the binding is {type(iobinding).__name__}, expected an IOBinding of this module")
        if not iobinding.targets:
            raise InputError("no output is bound")
        iobinding.write(self.run(list(iobinding.targets), iobinding.inputs, run_options))

    def run_async(
        self,
        output_names: Iterable[str] | None,
        input_feed: Mapping[str, ArrayLike | OrtValue],
        callback: Callable[[list[Any], Any, str], Any],
        user_data: Any,
        run_options: RunOptions | None = None,
    ) -> None:
        """Run the model on a new thread, which then calls `callback`. The process waits for it at its end.

        Args:
            output_names: The names of the outputs to return, as for `run`.
            input_feed: Inputs by name, as for `run`. They must not change until the callback.
            callback: Called as callback(outputs, user_data, error): the outputs as `run` returns them and "", or []
                and the message of an error.
            user_data: Whatever the callback is to get.
            run_options: Options, as for `run`.

        Raises:
            InputError: An input is missing, or there is no output of a given name.
            InputTypeError: `output_names` is not a sequence of str.
        """
        names = None if output_names is None else self._check_names(output_names)
        missing = [name for name in self.model.required_inputs if name not in input_feed]
        if missing:
            raise InputError(f"input {missing[0]!r} is missing: the model has {[v.name for v in self.model.inputs]}")

        def work() -> None:
            outputs, error = [], ""
            try:
                outputs = self.run(names, input_feed, run_options)
            except Error as e:
                error = str(e)
            callback(outputs, user_data, error)

        threading.Thread(target=work, name="rnnfast run_async").start()

    def _check_names(self, output_names: Iterable[str]) -> list[str]:
        """Return the names of outputs as a list, if there are such outputs."""
        names = (
            None
            if isinstance(output_names, (str, bytes)) or not isinstance(output_names, Iterable)
            else [*output_names]
        )
        if names is None or not all(isinstance(name, str) for name in names):
            raise InputTypeError(f"output names are {type(output_names).__name__}, expected a sequence of str or None")
        for name in names:
            if name not in self._names:
                raise InputError(f"there is no output {name!r}, only {self._names}")
        return names

    def _run_all(self, input_feed: Mapping[str, Any], run_options: RunOptions | None) -> list[Any]:
        """Run the model with all outputs, until the `terminate` of the options is set."""
        if run_options is None and self._trace is None:
            try:
                return self.model.run(input_feed)
            except InputTypeError:
                if OrtValue not in map(type, input_feed.values()):
                    raise
        input_feed = {name: unwrapped(value) for name, value in input_feed.items()}
        run = self.model.run if self._trace is None else self._trace.run
        if run_options is None:
            return run(input_feed)
        flag = getattr(run_options, "_terminate", None)
        if not isinstance(flag, Flag):  # onnxruntime's own options: what they say now
            flag = Flag()
            flag.set(getattr(run_options, "terminate", False))
        return within(None, flag, run, input_feed)

    def end_profiling(self) -> str:
        """End the trace of runs, if `SessionOptions.enable_profiling` began one, and write it.

        The file is in the format of Chrome's trace viewer, which chrome://tracing and https://ui.perfetto.dev show: one
        event for each step of each run. Native steps are timed once more after a run, so runs take longer than
        without a trace.

        Returns:
            The path of the file, `profile_file_prefix` with the time and the process; "" if there is no trace.
        """
        trace, self._trace = self._trace, None
        return "" if trace is None else trace.write()

    def get_profiling_start_time_ns(self) -> int:
        """Return when the trace began.

        Returns:
            Nanoseconds of `time.perf_counter_ns`; 0 if there is no trace.
        """
        return 0 if self._trace is None else self._trace.begun

    def enable_fallback(self) -> None:
        """Do nothing: there is no other provider to fall back to."""

    def disable_fallback(self) -> None:
        """Do nothing: there is no other provider to fall back to."""

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
