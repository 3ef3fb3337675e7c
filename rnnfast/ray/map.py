"""A model as an object that other processes call on batches of sequences."""

from __future__ import annotations

import collections
import collections.abc
import hashlib
import os
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

from rnnfast.errors import InputError, InputTypeError
from rnnfast.ray import columns

if TYPE_CHECKING:
    from rnnfast.model import Model
    from rnnfast.nn import Module

MODELS = 4  # the most models that a process keeps for its Maps

# The models of this process by the digest of their pickles, the last used last: tasks that bring the same Map again
# and again, as those of joblib, Dask and Spark do, find it loaded.
_loaded: collections.OrderedDict[bytes, Any] = collections.OrderedDict()
_loading = threading.Lock()


class Map:
    """Runs a model over a corpus of ragged sequences, batch by batch, in processes of others.

    It can be pickled, and it carries the model with it: no file is needed where it is called. A process loads the model
    once, however often the object comes. A batch is

    - a table: a dict of arrays (Ray Data), a pandas DataFrame or a pyarrow Table. Returned is a table of the same kind,
      with the results as a further column;
    - a pandas Series (Spark's pandas_udf): returned is a Series;
    - any iterable of sequences (joblib, Dask): returned is a list of results.

    A batch is what `model.map` gets, and each result is what it gives: of a model with one output an array, else a
    mapping; of a recurrent layer the outputs, without the last state. Rows stay in order, and each result has the bits
    of the model called with that sequence alone. Sequences of similar length in a batch are computed together, so a
    batch should have hundreds of rows.

    Args:
        model: A model, a layer, or the path of an ONNX file, which is read here. A layer is taken as it is now.
        input: The column of the sequences, or a mapping from the model's inputs to columns. None where tables have one
            column only.
        output: The column of the results. A model of several results has a column for each, named
            `output` + "." + its name.
        keep: The columns of a table that are handed on; None for all.
        frames: The most steps that are computed together: the `batch` of `model.map`.
        threads: How many batches are computed at a time; None for as many as Ray gave CPUs to the actor or task, and 1
            elsewhere.
        **fixed: Inputs of a model that are the same for all sequences.

    Raises:
        InputError: An argument has a value that is not allowed.
        InputTypeError: `model` is none of these.
        Error: The file cannot be loaded.
    """

    def __init__(
        self,
        model: Model | Module | str | os.PathLike[str],
        input: str | collections.abc.Mapping[str, str] | None = None,
        output: str = "output",
        *,
        keep: collections.abc.Iterable[str] | None = None,
        frames: int | None = None,
        threads: int | None = None,
        **fixed: Any,
    ) -> None:
        for name, value in (("frames", frames), ("threads", threads)):
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"Map: {name} is {value!r}, expected an int of at least 1, or None")
        if isinstance(keep, str):
            raise InputError(f"Map: keep is {keep!r}, expected a list of columns")
        self.input = dict(input) if isinstance(input, collections.abc.Mapping) else input
        self.output, self.keep = output, None if keep is None else list(keep)
        self.frames, self.threads, self.fixed = frames, threads, fixed
        self._pickle = pickled_model(model)
        self._digest = hashlib.sha256(self._pickle).digest()

    @property
    def model(self) -> Any:
        """The model as this process has it."""
        return loaded(self._digest, self._pickle)

    def __call__(self, batch: Any) -> Any:
        """Return the results of a batch, in the form that the class describes.

        Raises:
            InputError: A column is missing, or a sequence does not fit; the message names its row.
            Error: As the model called with the sequence does.
        """
        kind = columns.kind_of(batch)
        if kind is not None:
            return self._table(batch, kind)
        results = self._results(columns.sequences_of(batch, "the batch"))
        pandas = sys.modules.get("pandas")
        if pandas is not None and isinstance(batch, pandas.Series):
            rows = columns.as_objects([columns.as_lists(row) for row in results])
            return pandas.Series(rows, index=batch.index, name=self.output)
        return results

    def _table(self, batch, kind):
        names = columns.names_of(batch, kind)
        keep = names if self.keep is None else self.keep
        chosen = self.input
        if chosen is None:
            if len(names) != 1:
                raise InputError(f"Map: the batch has the columns {names}: give input=, the one of the sequences")
            chosen = names[0]
        for name in [*(chosen.values() if isinstance(chosen, dict) else [chosen]), *keep]:
            if name not in names:
                raise InputError(f"Map: no column {name!r} in the batch, which has {names}")
        if isinstance(chosen, dict):
            parts = {name: columns.sequences_of(batch[column], f"column {column!r}") for name, column in chosen.items()}
            sequences = [dict(zip(parts, row)) for row in zip(*parts.values())]
        else:
            sequences = columns.sequences_of(batch[chosen], f"column {chosen!r}")
        results = self._results(sequences)
        named: dict[str, list[Any]] = {self.output: results}
        if results and isinstance(results[0], collections.abc.Mapping):
            named = {f"{self.output}.{name}": [row[name] for row in results] for name in results[0]}
        keep = [name for name in keep if name not in named]
        return columns.with_results(batch, kind, keep, named)

    def _results(self, sequences):
        threads = self.threads or _assigned_cpus() or 1
        results = self.model.map(sequences, batch=self.frames, threads=threads, **self.fixed)
        # A recurrent layer returns its last state too.
        return [result[0] if isinstance(result, tuple) else result for result in results]

    def apply(
        self,
        dataset: Any,
        *,
        actors: int | None = None,
        num_cpus: int = 1,
        batch_size: int = 1024,
        batch_format: str = "pyarrow",
        **options: Any,
    ) -> Any:
        """Map a dataset of Ray Data: lazily, with rows in order.

        Args:
            dataset: A ray.data.Dataset.
            actors: The most actors, each of which loads the model once; None for one to each `num_cpus` of the cluster.
            num_cpus: The CPUs, and so the threads, of an actor.
            batch_size: Rows of a batch.
            batch_format: "pyarrow" gives results as nested lists, which any reader of Parquet knows; "numpy" gives
                Ray's tensors, and "pandas" is slower.
            **options: Further options of `map_batches`.

        Returns:
            The new dataset.

        Raises:
            InputError: `actors` is out of range.
        """
        ray = import_ray()
        from ray.data import ActorPoolStrategy

        if actors is None:
            actors = max(int(ray.cluster_resources().get("CPU", 1) // num_cpus), 1)
        elif type(actors) is not int or actors < 1:
            raise InputError(f"Map: actors is {actors!r}, expected an int of at least 1, or None")
        mapped = dataset.map_batches(
            Actor,
            fn_constructor_args=(self,),
            compute=ActorPoolStrategy(min_size=1, max_size=actors),
            num_cpus=num_cpus,
            batch_size=batch_size,
            batch_format=batch_format,
            zero_copy_batch=True,
            **options,
        )
        mapped.context.execution_options.preserve_order = True
        return mapped

    def __repr__(self) -> str:
        return f"<rnnfast.ray.Map of {self.model!r}: {self.input!r} -> {self.output!r}>"


class Actor:
    """A Map in an actor of Ray Data, which wants a class."""

    def __init__(self, mapped: Map) -> None:
        self._map = mapped
        mapped(())  # the model is loaded, and how it runs is found out, when the actor starts

    def __call__(self, batch: Any) -> Any:
        return self._map(batch)


def pickled_model(model: Any) -> bytes:
    """Return the pickle of a model or layer, or of the model in a file.

    Raises:
        InputTypeError: `model` is none of these.
    """
    if isinstance(model, (str, os.PathLike)):
        from rnnfast.model import load

        model = load(model)
    if not hasattr(model, "stream"):
        raise InputTypeError(f"got a {type(model).__name__}, expected a model, a layer or the path of an ONNX file")
    return pickle.dumps(model, pickle.HIGHEST_PROTOCOL)


def loaded(digest: bytes, pickle_of_model: bytes) -> Any:
    """Return the model of a pickle, which this process loads once."""
    with _loading:
        model = _loaded.pop(digest, None)
        if model is None:
            model = pickle.loads(pickle_of_model)
            while len(_loaded) >= MODELS:
                _loaded.popitem(last=False)
        _loaded[digest] = model
        return model


def import_ray() -> Any:
    """Return the module ray.

    Raises:
        UnsupportedError: It is not installed.
    """
    try:
        import ray
    except ImportError as error:
        from rnnfast.errors import UnsupportedError

        raise UnsupportedError(f"{error}: pip install 'rnnfast[ray]'") from error
    return ray


def _assigned_cpus():
    """The CPUs that Ray gave to the actor or task that runs this; None elsewhere."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return None
    return max(int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)), 1)
