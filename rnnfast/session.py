"""onnxruntime's names on a Model, so that a program moves over by changing an import."""

import enum

from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.model import Model

PROVIDERS = ["CPUExecutionProvider"]


class GraphOptimizationLevel(enum.IntEnum):
    """Accepted and kept: the same graph runs at every level."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(enum.IntEnum):
    """Accepted and kept: nodes run one after the other."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class SessionOptions:
    """onnxruntime's fields, accepted and kept. `intra_op_num_threads` is how many threads a call may use, 0 for the
    default: see ``rnnfast.load``. Nothing is logged or profiled.

    `matmul` is rnnfast's own: see ``rnnfast.load``.
    """

    def __init__(self):
        self.matmul = None
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
        self._entries = {}

    def add_session_config_entry(self, key, value):
        self._entries[key] = value

    def get_session_config_entry(self, key):
        if key not in self._entries:
            raise InputError(f"no session configuration entry {key!r}")
        return self._entries[key]

    def has_session_config_entry(self, key):
        return key in self._entries

    def register_custom_ops_library(self, path):
        raise UnsupportedError(f"custom operators ({path}) are not supported")


class RunOptions:
    """onnxruntime's fields, accepted and kept."""

    def __init__(self):
        self.log_severity_level = -1
        self.log_verbosity_level = 0
        self.logid = ""
        self.only_execute_path_to_fetches = False
        self.terminate = False
        self.training_mode = False

    def add_run_config_entry(self, key, value):
        """Accepted: no entry changes what is computed."""


class NodeArg:
    """An input or output: name, shape (int, str or None for each dimension) and type ('tensor(float)' and the like)."""

    def __init__(self, value):
        self.name = value.name
        self.type = str(value.type)
        self.shape = list(value.type.shape or ())

    def __repr__(self):
        return f"NodeArg(name={self.name!r}, type={self.type!r}, shape={self.shape})"


class ModelMetadata:
    """What the file says of itself."""

    def __init__(self, source, graph):
        self.producer_name = source.producer
        self.description = source.doc_string
        self.graph_name = graph.name
        self.custom_metadata_map = dict(source.metadata)


class InferenceSession:
    """A Model under onnxruntime's names. Providers and their options are accepted and mean nothing: it is the CPU."""

    def __init__(self, path_or_bytes, sess_options=None, providers=None, provider_options=None, **kwargs):
        self._options = sess_options if sess_options is not None else SessionOptions()
        threads = getattr(self._options, "intra_op_num_threads", 0)
        self.model = Model(
            path_or_bytes,
            matmul=getattr(self._options, "matmul", None),
            threads=None if type(threads) is int and threads == 0 else threads,
        )
        self._names = [v.name for v in self.model.outputs]

    def run(self, output_names, input_feed, run_options=None):
        """The named outputs (all of them for None or an empty list) as a list of fresh arrays."""
        if output_names is None:
            return self.model.run(input_feed)
        if not isinstance(output_names, (list, tuple)) or not all([type(name) is str for name in output_names]):
            raise InputTypeError(f"output names are {type(output_names).__name__}, expected a list of str or None")
        for name in output_names:
            if name not in self._names:
                raise InputError(f"there is no output {name!r}, only {self._names}")
        outputs = self.model.run(input_feed)
        if not output_names or output_names == self._names:
            return outputs
        outputs = dict(zip(self._names, outputs))
        return [outputs[name] for name in output_names]

    def get_inputs(self):
        """The inputs without an initializer, as NodeArg."""
        required = set(self.model.required_inputs)
        return [NodeArg(v) for v in self.model.inputs if v.name in required]

    def get_overridable_initializers(self):
        """The inputs that have an initializer."""
        required = set(self.model.required_inputs)
        return [NodeArg(v) for v in self.model.inputs if v.name not in required]

    def get_outputs(self):
        return [NodeArg(v) for v in self.model.outputs]

    def get_modelmeta(self):
        return ModelMetadata(self.model.source, self.model.graph)

    def get_session_options(self):
        return self._options

    def get_providers(self):
        return list(PROVIDERS)

    def get_provider_options(self):
        return {name: {} for name in PROVIDERS}

    def set_providers(self, providers=None, provider_options=None):
        """Accepted: there is the CPU only."""


def get_available_providers():
    return list(PROVIDERS)


def get_device():
    return "CPU"
