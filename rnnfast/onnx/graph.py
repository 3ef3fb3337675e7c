"""Reads an ONNX file to a checked Graph: operators are found, attributes bound, names resolved and nodes sorted."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from sys import intern
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import (
    Error,
    LimitError,
    MissingFileError,
    ModelError,
    NotOnnxError,
    UnsupportedError,
    raise_if_from_handler,
    with_location,
)
from rnnfast.limits import Limits
from rnnfast.onnx import binding, control_checks, fusions, ops, recurrent_nodes, static_types, tensors
from rnnfast.onnx.model_folder import ModelFolder

MIN_IR_VERSION = 3
# The depth of graphs within graphs (branches, loop bodies, functions): a small file could ask for any.
MAX_DEPTH = 24
# Characters of a node's name or operator in messages; each node has such a text, and a name may have a megabyte.
MAX_SHOWN = 200
# Protocol buffers cannot be larger; models with larger weights have them in external data.
MAX_FILE_BYTES = 2**31
ORT_FORMAT = b"ORTM"  # bytes 4 to 8 of a file that onnxruntime wrote for itself


@dataclasses.dataclass(frozen=True, slots=True)
class Type:
    """The type of an input or output.

    Attributes:
        kind: "tensor", "seq" or "optional".
        dtype: The dtype of a tensor's elements; None if the file does not declare it.
        shape: For each dimension of a tensor an int, a str if the file names it, or None if it leaves it open; None if
            it does not declare the rank.
        element: The type of the members of a sequence, or of an optional's value.
    """

    kind: str
    dtype: np.dtype | None = None
    shape: tuple[int | str | None, ...] | None = None
    element: Type | None = None

    def __str__(self) -> str:
        """The type as onnxruntime writes it: tensor(float), seq(tensor(int64)), optional(...)."""
        if self.kind == "tensor":
            return f"tensor({'undefined' if self.dtype is None else tensors.type_name(self.dtype)})"
        return f"{self.kind}({self.element or ''})"


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """The name and type of an input or output of a graph."""

    name: str
    type: Type


class Alternative(NamedTuple):
    """Another way to compute a Loop or Scan: a graph that gives the same outputs where sizes are equal.

    Attributes:
        graph: The graph. It captures what the node takes.
        rows: The (name, axis) of the sizes that must be equal.
        frames: The (name, axis) of the sizes that must equal the number of iterations, of which there is one at least.
    """

    graph: Graph
    rows: tuple[tuple[str, int], ...]
    frames: tuple[tuple[str, int], ...]

    @property
    def names(self) -> frozenset[str]:
        """The names of the values that it reads, or of which it reads a size."""
        return self.graph.captures.union(name for name, _ in self.rows + self.frames)


@dataclasses.dataclass(slots=True, eq=False)
class Node:
    """One operator with its attributes bound, or a call of one of the model's own functions.

    A call has no `function`; its attribute `body` is the function's graph. Nodes are never changed once they are made;
    `altered` makes another one.
    """

    where: str  # how messages name it: file, node, operator
    name: str
    domain: str
    op_type: str
    inputs: tuple[str, ...]  # names; "" for an absent one
    outputs: tuple[str, ...]
    function: Callable[..., Any] | None  # the NumPy function, which takes `attributes` as keyword arguments
    attributes: dict[str, Any]
    run: Callable[..., Any] | None = None  # the callable that runs it, set when the graph is folded
    one_type: tuple[tuple[int, ...], ...] = ()  # groups of inputs, by index, that must have one type
    result_types: tuple[Any, ...] = ()  # for each output its dtype, or the inputs, by index, whose type it has
    alternative: Alternative | None = None
    weight_type: str | None = None  # the key in WEIGHT_TYPES of its constant weights, None for float32; set at load
    graphs: dict[str, Graph] = dataclasses.field(init=False)  # the graphs among the attributes: branches and bodies
    needs: set[str] = dataclasses.field(init=False)  # the names that it reads, with those that its graphs capture

    def __post_init__(self) -> None:
        self.graphs = {name: value for name, value in self.attributes.items() if isinstance(value, Graph)}
        self.needs = set(self.inputs).union(*(graph.captures for graph in self.graphs.values()))
        if self.alternative is not None:
            self.needs |= self.alternative.names
        self.needs.discard("")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the function as the opset that introduced it; `run`, which folding sets, is left out."""
        variants = ops.table().get((self.domain.replace("ai.onnx", ""), self.op_type), {})
        function = next((since for since, variant in variants.items() if variant is self.function), self.function)
        facts = (self.where, self.name, self.domain, self.op_type, self.inputs, self.outputs)
        return _unpickled_node, (*facts, function, self.attributes)

    def altered(
        self,
        *,
        function: Callable[..., Any] | None = None,
        attributes: dict[str, Any] | None = None,
        run: Callable[..., Any] | None = None,
    ) -> Node:
        """A copy with another function or other attributes, and with this `run`."""
        return Node(
            self.where,
            self.name,
            self.domain,
            self.op_type,
            self.inputs,
            self.outputs,
            function or self.function,
            attributes or self.attributes,
            run,
            self.one_type,
            self.result_types,
            self.alternative,
            self.weight_type,
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A checked graph, whose nodes are in an order in which they can run."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    constants: dict[str, Any]  # read-only arrays by name: the initializers, and once folded also computed constants
    nodes: tuple[Node, ...]
    captures: frozenset[str]  # the names that it takes from the graphs around it

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled_graph, tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def constants_within(node: Node, graph: Graph, constants: Mapping[str, Any]) -> dict[str, Any]:
    """The constants that a graph of a node gets, by their names in it: those passed to a function, or else captured.

    `constants` has those of the graph that the node is in, by name.
    """
    if node.function is None:
        return {v.name: constants[name] for v, name in zip(graph.inputs, node.inputs) if name in constants}
    return {name: constants[name] for name in graph.captures if name in constants}


def _unpickled_node(
    where: str,
    name: str,
    domain: str,
    op_type: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    function: Any,
    attributes: dict[str, Any],
) -> Node:
    """The Node of a pickle."""
    if isinstance(function, int):
        function = ops.lookup(domain, op_type, function)
    _make_read_only(attributes)
    return Node(where, name, domain, op_type, inputs, outputs, function, attributes)


def _unpickled_graph(name: str, inputs: Any, outputs: Any, constants: dict[str, Any], *rest: Any) -> Graph:
    """The Graph of a pickle."""
    _make_read_only(constants)
    return Graph(name, inputs, outputs, constants, *rest)


def _make_read_only(values: dict[str, Any]) -> None:
    """Make arrays read-only again, which a pickle does not keep: then no call hands them out, but copies of them."""
    for value in values.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The facts of a file besides its graph.

    Attributes:
        label: The name of the file for messages.
        ir_version: The version of the file format.
        opsets: The version of each domain's operators; "" is ONNX's own domain.
        producer_name: The name of the program that wrote the file.
        producer_version: The version of that program.
        domain: The domain of the model.
        model_version: The version of the model.
        doc_string: The model's documentation.
        graph_doc_string: The graph's documentation.
        metadata: The metadata properties by key.
    """

    label: str
    ir_version: int
    opsets: dict[str, int]
    producer_name: str
    producer_version: str
    domain: str
    model_version: int
    doc_string: str
    graph_doc_string: str
    metadata: dict[str, str]

    @property
    def producer(self) -> str:
        """The name and version of the program that wrote the file."""
        return f"{self.producer_name} {self.producer_version}".strip()


def read(
    source: str | os.PathLike[str] | bytes,
    problems: list[UnsupportedError] | None = None,
    external_data: bool = True,
    limits: Limits = Limits(),
    edit: Callable[[Any], None] | None = None,
) -> tuple[Graph, Source]:
    """Read and check a model, given as a path or as the bytes of a file; `edit` changes the ModelProto before.

    Raises ModelError, UnsupportedError or LimitError. If `problems` is a list, the UnsupportedErrors of nodes are
    appended to it instead, and these nodes have no function; else a graph of float16 or bfloat16 is rewritten to one
    that computes in float32. With external_data=False no file but the model's is read.
    """
    label = "<bytes>"
    with contextlib.ExitStack() as cleanup:
        try:
            folder = None
            if isinstance(source, (str, os.PathLike)):
                path = os.fsdecode(source)
                label = os.path.basename(path)
                folder = cleanup.enter_context(_folder(path))
                data = _contents(folder)
            elif isinstance(source, (bytes, bytearray, memoryview)):
                data = bytes(source)
            else:
                raise ModelError(f"expected a path or the bytes of an ONNX model, got {type(source).__name__}")
            proto = _parsed(data, label)
            if edit is not None:
                edit(proto)
            return _Reader(proto, label, folder if external_data else None, problems, limits).read()
        except Error:
            raise
        except RecursionError:
            raise LimitError(f"{label}: graphs are nested too deep") from None
        except MemoryError as e:
            raise LimitError(f"{label}: no memory to read it: {e}") from e
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as e:
            raise_if_from_handler(e)
            raise ModelError(f"{label}: cannot be read: {type(e).__name__}: {e}") from e


def _folder(path: str) -> ModelFolder:
    """Open a model file and its folder."""
    try:
        return ModelFolder(path)
    except (OSError, ValueError) as e:
        raise_if_from_handler(e)
        kind = MissingFileError if isinstance(e, FileNotFoundError) else ModelError
        raise kind(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from e


def _contents(folder: ModelFolder) -> bytes:
    """The bytes of a model file."""
    try:
        size = os.fstat(folder.model.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise ModelError(f"{folder.path}: cannot be read: {size} bytes, a model has {MAX_FILE_BYTES} at most")
        return folder.model.read(size)
    except OSError as e:
        raise_if_from_handler(e)
        raise ModelError(f"{folder.path}: cannot be read: {e}") from e


def _parsed(data: bytes, label: str) -> Any:
    """The ModelProto that the bytes of a file are."""
    import onnx

    if data[4:8] == ORT_FORMAT:
        raise UnsupportedError(f"{label}: a file in onnxruntime's own format (.ort), expected an ONNX file")
    try:
        return onnx.ModelProto.FromString(data)
    except MemoryError:
        raise
    except Exception as e:
        raise_if_from_handler(e)
        raise NotOnnxError(f"{label}: not an ONNX model, or truncated: {e}") from e


@dataclasses.dataclass(frozen=True, slots=True)
class _Scope:
    """The surroundings of a node, which give its operators, attribute references and input names their meaning."""

    opsets: dict[str, int]
    references: dict[str, Any]  # inside a function: the AttributeProtos of the call, by name
    # The names that are defined, those of each graph around the node, the innermost first; each with its initializer,
    # input (a Value) or NodeProto.
    around: tuple[dict[str, Any], ...]
    passed: dict[str, np.dtype | None]  # inside a function: the dtypes of its inputs, None where one is not known
    depth: int  # of graphs within graphs
    calls: tuple[tuple[str, str, str], ...]  # the keys of the functions that are being called

    def defines(self, name: str) -> bool:
        """Return whether a graph around the node defines the name."""
        return any(name in names for names in self.around)

    def dtype(self, name: str) -> np.dtype | None:
        """The dtype of an initializer, a Constant, or an input that declares it or is passed to a function, or of what
        is Identity of it; None for other names.
        """
        around, seen = self.around, set()
        while name not in seen:
            seen.add(name)
            around = next((around[i:] for i, names in enumerate(around) if name in names), ())
            maker = around[0][name] if around else None
            if isinstance(maker, np.ndarray):
                return maker.dtype
            if isinstance(maker, Value):
                return maker.type.dtype or (self.passed.get(name) if len(around) == 1 else None)
            if maker is None or _domain(maker.domain):
                return None
            if maker.op_type == "Constant":
                given = [a.t.data_type for a in maker.attribute if a.name == "value" and a.HasField("t")]
                return tensors.numpy_dtype(given[0]) if given else None
            if maker.op_type != "Identity" or not maker.input:
                return None
            name = maker.input[0]
        return None


class _Body(NamedTuple):
    """The graph of a function, which other calls of it with the same attributes copy."""

    graph: Graph
    kept: Any  # the objects whose ids are in the body's key
    n_nodes: int  # those of graphs within it and of the functions that it calls included
    depth: int  # of graphs within graphs, 1 if there are none


class _Reader:
    """Checks a ModelProto and makes its Graph."""

    def __init__(
        self,
        proto: Any,
        label: str,
        folder: ModelFolder | None,
        problems: list[UnsupportedError] | None,
        limits: Limits,
    ) -> None:
        self.limits, self.nbytes = limits, 0
        self.proto, self.label, self.folder, self.problems = proto, label, folder, problems
        self.functions: dict[tuple[str, str, str], Any] = {}  # (domain, name, overload) -> FunctionProto
        # the same key -> (default attributes by name, names of all attributes, opsets) of the function
        self.signatures: dict[tuple[str, str, str], tuple[dict[str, Any], set[str], dict[str, int]]] = {}
        self.bodies: dict[Any, _Body] = {}
        # (id of an AttributeProto inside a function, its conversion, the id of the scope of a graph) -> (the value, the
        # nodes in it, the objects whose ids are in the key)
        self.converted: dict[tuple[int, Any, int | None], tuple[Any, int, Any]] = {}
        self.n_nodes = 0

    def read(self) -> tuple[Graph, Source]:
        """Check the file's versions and functions, and read its graph."""
        import onnx

        proto = self.proto
        if not proto.HasField("graph"):
            raise NotOnnxError(f"{self.label}: not an ONNX model, or truncated: it has no graph")
        if not MIN_IR_VERSION <= proto.ir_version <= onnx.IR_VERSION:
            raise UnsupportedError(
                f"{self.label}: IR version {proto.ir_version} is not supported, only "
                f"{MIN_IR_VERSION} to {onnx.IR_VERSION}"
            )
        if not proto.opset_import:
            raise ModelError(f"{self.label}: truncated: no opset is given")
        opsets = self.opsets(proto.opset_import, self.label)
        for function in proto.functions:
            key = (_domain(function.domain), function.name, function.overload)
            if key in self.functions:
                raise ModelError(f"{self.label}: function {function.name!r} is defined twice")
            self.functions[key] = function
        graph = self.graph(proto.graph, _Scope(opsets, {}, (), {}, 0, ()))
        proof = static_types.Proof(graph, self.label)
        if proof.has_halves and self.problems is None:
            from rnnfast.onnx.halves import in_float32

            graph = in_float32(graph, proof, self.label, self.count_bytes)
        source = Source(
            label=self.label,
            ir_version=proto.ir_version,
            opsets=opsets,
            producer_name=proto.producer_name,
            producer_version=proto.producer_version,
            domain=proto.domain,
            model_version=proto.model_version,
            doc_string=proto.doc_string,
            graph_doc_string=proto.graph.doc_string,
            metadata={p.key: p.value for p in proto.metadata_props},
        )
        return graph, source

    def opsets(self, imports: Iterable[Any], where: str) -> dict[str, int]:
        """The opset of each domain, checked."""
        import onnx

        opsets: dict[str, int] = {}
        for entry in imports:
            domain = _domain(entry.domain)
            if opsets.setdefault(domain, entry.version) != entry.version:
                raise ModelError(f"{where}: opsets {opsets[domain]} and {entry.version} of domain {domain!r}")
        newest = onnx.defs.onnx_opset_version()
        if not 1 <= opsets.get("", 1) <= newest:
            raise UnsupportedError(
                f"{where}: opset {opsets['']} is not supported, only {binding.MODERN_OPSET} to "
                f"{newest}, and lower ones where an operator has not changed since"
            )
        return opsets

    # ------------------------------------------------------------------------------------------- graphs
    def graph(self, proto: Any, scope: _Scope) -> Graph:
        """Read a GraphProto: the file's main graph, or a branch or body among a node's attributes."""
        where = f"{self.label}: graph {proto.name!r}"
        if scope.depth > MAX_DEPTH:
            raise LimitError(f"{where}: graphs are nested deeper than {MAX_DEPTH}")
        # Interned, because a call's names are compared with these: equal names are then mostly the same object.
        inputs = tuple(Value(intern(v.name), _type(v.type, f"{where}: input {v.name!r}")) for v in proto.input)
        outputs = tuple(Value(intern(v.name), _type(v.type, f"{where}: output {v.name!r}")) for v in proto.output)
        if not outputs:
            raise ModelError(f"{where}: it has no outputs")
        return self.checked_graph(proto.name, inputs, outputs, self.constants(proto, where), proto.node, scope, where)

    def constants(self, proto: Any, where: str) -> dict[str, np.ndarray]:
        """The initializers of a GraphProto as arrays, by name."""
        constants: dict[str, np.ndarray] = {}
        dense = [(t.name, t, tensors.decode) for t in proto.initializer]
        sparse = [(s.values.name, s, tensors.decode_sparse) for s in proto.sparse_initializer]
        for name, tensor, decode in dense + sparse:
            if name in constants or not name:
                raise ModelError(f"{where}: initializer {name!r} is {'given twice' if name else 'without a name'}")
            constants[name] = decode(tensor, where, self.folder, self.count_bytes)
        return constants

    def checked_graph(
        self,
        name: str,
        inputs: tuple[Value, ...],
        outputs: tuple[Value, ...],
        constants: dict[str, np.ndarray],
        protos: Sequence[Any],
        scope: _Scope,
        where: str,
    ) -> Graph:
        """Read the nodes and make a Graph; every name must be defined once, and before it is used or by a node."""
        names = [v.name for v in inputs]
        if len(set(names)) < len(names) or "" in names:
            raise ModelError(f"{where}: inputs {names} are not distinct names")
        defined: dict[str, Any] = constants | {v.name: v for v in inputs}
        produced = set()
        for output, node in [(o, proto) for proto in protos for o in proto.output if o]:
            if output in defined:
                raise ModelError(f"{where}: tensor {output!r} is defined twice")
            defined[output] = node
            produced.add(output)
        inner = dataclasses.replace(scope, around=(defined, *scope.around), depth=scope.depth + 1)
        nodes = [self.node(proto, i, inner) for i, proto in enumerate(protos)]
        for value in outputs:
            if not inner.defines(value.name):
                raise ModelError(f"{where}: output {value.name!r} is produced by no node")
        nodes = _sorted(nodes, produced, where)
        used = {v.name for v in outputs}.union(*(node.needs for node in nodes))
        return Graph(name, inputs, outputs, constants, tuple(nodes), frozenset(used - defined.keys()))

    # ------------------------------------------------------------------------------------------- nodes
    def count_nodes(self, count: int) -> None:
        """Count nodes; raise LimitError if there are too many."""
        self.n_nodes += count
        self.limits.check("nodes", self.n_nodes, f"{self.label}: the nodes are at least")

    def count_bytes(self, nbytes: int, where: str) -> None:
        """Count bytes of constants before they are decoded; raise LimitError if there are too many."""
        self.nbytes += nbytes
        self.limits.check("bytes_at_load", self.nbytes, f"{where}: the bytes of constants are")

    def node(self, proto: Any, index: int, scope: _Scope) -> Node:
        """Read a NodeProto, the node number `index` of its graph."""
        self.count_nodes(1)
        # Interned, because the nodes of a function are read again and again.
        name, domain, op_type = intern(proto.name), intern(_domain(proto.domain)), intern(proto.op_type)
        where = f"{self.label}: node {repr(_short(name)) if name else f'#{index}'} ({_short(op_type)})"
        inputs = tuple(map(intern, proto.input))
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        for value in inputs:
            if value and not scope.defines(value):
                raise ModelError(f"{where}: input {value!r} is produced by no node and is no input or initializer")
        attributes = self.attributes(proto, scope, where)
        own_function = self.functions.get((domain, op_type, proto.overload))
        function: Callable[..., Any] | None = None
        bound: dict[str, Any] = {}
        one_type: tuple[tuple[int, ...], ...] = ()
        result_types: tuple[Any, ...] = ()
        try:
            fusion = fusions.find(domain, op_type, scope.opsets.get(domain)) if domain in scope.opsets else None
            if own_function is not None:
                bound["body"] = self.function_body(own_function, attributes, inputs, proto, scope, where)
            elif fusion is not None:
                bound["body"] = self.fusion_body(fusion, attributes, inputs, proto, scope, where)
            else:
                function, bound = self.operator(proto, domain, inputs, attributes, scope, where)
                key = domain, proto.op_type, scope.opsets[domain]
                one_type = binding.inputs_of_one_type(*key, len(inputs))
                result_types = binding.result_types(*key, len(inputs), len(proto.output))
        except UnsupportedError as e:
            if self.problems is None:
                raise
            self.problems.append(e)
        outputs = tuple(map(intern, proto.output))
        return Node(where, name, domain, op_type, inputs, outputs, function, bound, None, one_type, result_types)

    def operator(
        self, proto: Any, domain: str, inputs: tuple[str, ...], attributes: dict[str, Any], scope: _Scope, where: str
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Find the function of an operator and its keyword arguments; check the numbers of inputs and outputs."""
        if domain == "" and domain not in scope.opsets:
            raise ModelError(f"{where}: no opset is given for ONNX's own operators")
        why = fusions.why_refused(domain, proto.op_type)
        if why or domain not in scope.opsets:
            raise UnsupportedError(f"{where}: operator {domain}.{proto.op_type} is not supported{why}")
        opset = scope.opsets[domain]
        function = binding.find(domain, proto.op_type, opset, where)
        binding.check_inputs(function, inputs, where)
        most = binding.most_outputs(domain, proto.op_type, opset)
        if not proto.output or most is not None and len(proto.output) > most:
            raise ModelError(f"{where}: {len(proto.output)} outputs, expected 1 to {most}")
        bound = binding.bind(function, attributes, len(proto.output), _Context(self, scope, where), where)
        control_checks.check(function, len(inputs), len(proto.output), bound, where)
        if not domain and proto.op_type in recurrent_nodes.CELL_KINDS:
            recurrent_nodes.check_attributes(proto.op_type, bound, where)
        return function, bound

    def attributes(self, proto: Any, scope: _Scope, where: str) -> dict[str, Any]:
        """The AttributeProtos of a node by name; references to attributes of the function around it are resolved."""
        attributes: dict[str, Any] = {}
        for attribute in proto.attribute:
            name = attribute.name
            if name in attributes:
                raise ModelError(f"{where}: attribute {name!r} is given twice")
            if attribute.ref_attr_name:
                if not scope.calls:
                    raise ModelError(
                        f"{where}: attribute {name!r} refers to {attribute.ref_attr_name!r} of a function, "
                        f"but the node is in none"
                    )
                referred = scope.references.get(attribute.ref_attr_name)
                if referred is None:
                    continue
                attribute = referred
            attributes[name] = attribute
        return attributes

    def function_body(
        self, function: Any, attributes: dict[str, Any], inputs: tuple[str, ...], call: Any, scope: _Scope, where: str
    ) -> Graph:
        """The graph of one of the model's own functions, for one call of it."""
        key = (_domain(function.domain), function.name, function.overload)
        if key in scope.calls:
            raise ModelError(f"{where}: the function calls itself")
        if scope.depth > MAX_DEPTH:
            raise LimitError(f"{where}: functions are nested deeper than {MAX_DEPTH}")
        if key not in self.signatures:
            defaults = {a.name: a for a in function.attribute_proto}
            opsets = self.opsets(function.opset_import, where)
            self.signatures[key] = defaults, {*function.attribute, *defaults}, opsets
        defaults, names, opsets = self.signatures[key]
        unknown = sorted(attributes.keys() - names)
        if unknown:
            raise ModelError(f"{where}: attribute {unknown[0]!r} is none of the function's")
        if len(inputs) > len(function.input) or len(call.output) > len(function.output):
            raise ModelError(
                f"{where}: {len(inputs)} inputs and {len(call.output)} outputs, the function has "
                f"{len(function.input)} and {len(function.output)}"
            )
        opsets = opsets or scope.opsets
        passed = {name: scope.dtype(given) for name, given in zip(function.input, inputs)}
        body_key = key, id(opsets), _attributes_key(attributes, bool(scope.calls)), tuple(passed.values())
        body = self.bodies.get(body_key)
        if body is not None:
            if scope.depth + body.depth - 1 > MAX_DEPTH:
                raise LimitError(f"{where}: functions are nested deeper than {MAX_DEPTH}")
            self.count_nodes(body.n_nodes)
            return copied(body.graph)
        before = self.n_nodes
        inner = _Scope(opsets, defaults | attributes, (), passed, scope.depth, (*scope.calls, key))
        anything = Type("tensor")
        graph = self.checked_graph(
            function.name,
            tuple(Value(n, anything) for n in function.input),
            tuple(Value(n, anything) for n in function.output),
            {},
            function.node,
            inner,
            where,
        )
        self.bodies[body_key] = _Body(graph, (attributes, opsets), self.n_nodes - before, _depth(graph))
        return graph

    def fusion_body(
        self,
        fusion: fusions.Fusion,
        attributes: dict[str, Any],
        inputs: tuple[str, ...],
        proto: Any,
        scope: _Scope,
        where: str,
    ) -> Graph:
        """The graph of one of onnxruntime's fused operators."""
        try:
            dtypes = [scope.dtype(name) for name in inputs]
            body, outputs = fusions.body_of(fusion, proto.name, inputs, proto.output, attributes, dtypes)
        except (UnsupportedError, ModelError) as e:
            raise with_location(e, where) from None
        calls = (*scope.calls, (proto.domain, proto.op_type, ""))
        inner = _Scope({"": fusions.OPSET}, {}, (), {}, scope.depth, calls)
        anything = Type("tensor")
        names = [name or f"input {i}" for i, name in enumerate(body.inputs)]
        return self.checked_graph(
            proto.op_type,
            tuple(Value(name, anything) for name in names),
            tuple(Value(name or names[0], anything) for name in outputs),
            body.constants,
            body.nodes,
            inner,
            where,
        )


class _Context:
    """Decodes the tensors and graphs among a node's attributes, for `binding.bind`."""

    def __init__(self, reader: _Reader, scope: _Scope, where: str) -> None:
        self.reader, self.scope, self.where = reader, scope, where

    def converted(self, convert: Callable[[Any, Any], Any], proto: Any) -> Any:
        """The value of an AttributeProto; inside functions, which are read again and again, it is converted once."""
        if not self.scope.calls:
            return convert(proto, self)
        # a graph reads names around it, so that it is the same for the nodes of one graph only
        key = id(proto), convert, id(self.scope) if proto.HasField("g") else None
        if key not in self.reader.converted:
            before = self.reader.n_nodes
            value = convert(proto, self)
            self.reader.converted[key] = value, self.reader.n_nodes - before, (proto, self.scope)
            return value
        value, n_nodes, _ = self.reader.converted[key]
        self.reader.count_nodes(n_nodes)
        return copied(value) if isinstance(value, Graph) else value

    def tensor(self, proto: Any) -> np.ndarray:
        return tensors.decode(proto, self.where, self.reader.folder, self.reader.count_bytes)

    def subgraph(self, proto: Any) -> Graph:
        return self.reader.graph(proto, self.scope)


def copied(graph: Graph) -> Graph:
    """A graph with nodes of its own, as whoever notes facts of nodes knows them by their ids; all else is shared."""
    return dataclasses.replace(
        graph,
        nodes=tuple(
            [
                node.altered(attributes=node.attributes | {name: copied(inner) for name, inner in node.graphs.items()})
                if node.graphs
                else node.altered()
                for node in graph.nodes
            ]
        ),
    )


def _depth(graph: Graph) -> int:
    """The depth of graphs within graphs, 1 if there are none."""
    return 1 + max((_depth(inner) for node in graph.nodes for inner in node.graphs.values()), default=0)


def _attributes_key(attributes: dict[str, Any], inside: bool) -> tuple[Any, ...]:
    """The attributes of a call as a key. Those of calls inside functions, which are read again, go by their ids."""
    return tuple(
        (name, id(proto) if inside else proto.SerializeToString(deterministic=True))
        for name, proto in sorted(attributes.items())
    )


def _short(name: str) -> str:
    """A name for messages, cut to MAX_SHOWN characters."""
    return name if len(name) <= MAX_SHOWN else name[: MAX_SHOWN - 3] + "..."


def _domain(domain: str) -> str:
    """The domain's one name: ONNX's own domain has two, "" and "ai.onnx"."""
    return "" if domain == "ai.onnx" else domain


def _type(proto: Any, where: str) -> Type:
    """The Type of a TypeProto."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        tensor = proto.tensor_type
        try:
            dtype = tensors.numpy_dtype(tensor.elem_type) if tensor.elem_type else None
        except UnsupportedError as e:
            raise UnsupportedError(f"{where}: {e}") from None
        shape = tuple(map(_dimension, tensor.shape.dim)) if tensor.HasField("shape") else None
        return Type("tensor", dtype, shape)
    if kind == "sequence_type":
        return Type("seq", element=_type(proto.sequence_type.elem_type, where))
    if kind == "optional_type":
        return Type("optional", element=_type(proto.optional_type.elem_type, where))
    if kind is None:
        return Type("tensor")
    raise UnsupportedError(f"{where}: values of {kind} are not supported")


def _dimension(dim: Any) -> int | str | None:
    """A dimension of a shape: its size, its name, or None; a negative size counts as open."""
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


def in_order(nodes: Sequence[Node], where: str) -> list[Node]:
    """Sort the nodes of a graph so that each comes after those whose outputs it reads."""
    return _sorted(nodes, {name for node in nodes for name in node.outputs if name}, where)


def _sorted(nodes: Sequence[Node], produced: set[str], where: str) -> list[Node]:
    """Sort nodes so that each comes after those whose outputs it reads, otherwise in the file's order.

    `produced` has the names of all outputs of nodes. Raises ModelError if there is a cycle.
    """
    maker = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    waits_for = [{maker[name] for name in node.needs if name in produced} for node in nodes]
    followers: list[list[int]] = [[] for _ in nodes]
    for i, makers in enumerate(waits_for):
        for j in makers:
            followers[j].append(i)
    missing = [len(makers) for makers in waits_for]  # the number of nodes that each still waits for
    ready = [i for i, count in enumerate(missing) if count == 0]
    order: list[Node] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(nodes[i])
        for j in followers[i]:
            missing[j] -= 1
            if missing[j] == 0:
                heapq.heappush(ready, j)
    if len(order) < len(nodes):
        stuck = [nodes[i].where for i, count in enumerate(missing) if count][:3]
        raise ModelError(f"{where}: a cycle through {', '.join(name.split(': ', 1)[1] for name in stuck)}")
    return order
