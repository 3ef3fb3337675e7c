"""Maps and deployments where they are used: Ray Data, Ray Serve on several nodes, Dask, joblib and Spark."""

import asyncio
import json
import os
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.ray import Map, deployment
from tests.graphs import random
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ROWS = [random(seed, 1 + seed * 7 % 40, 5) for seed in range(300)]
SECONDS = 5.0  # within which a client whose replica died is told


def network():
    return nn.Sequential(nn.LSTM(5, 7, rng=0), nn.Linear(7, 3, rng=1))


def right():
    return [network().stream().run(row) for row in ROWS]


def same(results, wanted):
    return len(results) == len(wanted) and all(
        np.array_equal(np.asarray([np.asarray(step) for step in result], np.float32), row)
        for result, row in zip(results, wanted)
    )


def corpus():
    pyarrow = pytest.importorskip("pyarrow")
    kind = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
    return pyarrow.table({"x": pyarrow.array([row.tolist() for row in ROWS], kind), "id": range(len(ROWS))})


# -------------------------------------------------------------------------------------------------- joblib, Dask, Spark
def test_joblib():
    joblib = pytest.importorskip("joblib")
    parts = [ROWS[first : first + 50] for first in range(0, len(ROWS), 50)]
    results = joblib.Parallel(n_jobs=2)(joblib.delayed(Map(network()))(part) for part in parts)
    assert same([row for part in results for row in part], right())


def test_dask():
    distributed = pytest.importorskip("distributed")
    bag = pytest.importorskip("dask.bag")
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster):
            results = bag.from_sequence(ROWS, npartitions=4).map_partitions(Map(network())).compute()
    assert same(results, right())


def test_spark(monkeypatch):
    sql = pytest.importorskip("pyspark.sql")
    functions = pytest.importorskip("pyspark.sql.functions")
    pandas = pytest.importorskip("pandas")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    try:
        spark = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", False).getOrCreate()
    except Exception as error:
        pytest.skip(f"Spark does not start: {error}")
    try:
        mapped = Map(network())

        def udf(batches):
            for batch in batches:
                yield mapped(batch)

        udf.__annotations__ = {"batches": "Iterator[pandas.Series]", "return": "Iterator[pandas.Series]"}
        function = functions.pandas_udf(udf, "array<array<float>>", functionType=functions.PandasUDFType.SCALAR_ITER)
        rows = pandas.DataFrame({"id": range(len(ROWS)), "x": [row.tolist() for row in ROWS]})
        frame = spark.createDataFrame(rows, "id long, x array<array<float>>").repartition(4)
        results = frame.select("id", function("x").alias("y")).toPandas().sort_values("id")
        assert same(list(results["y"]), right())
    finally:
        spark.stop()


# -------------------------------------------------------------------------------------------------- Ray
@pytest.fixture(scope="module")
def ray():
    """Ray on three nodes of this machine: a head without CPUs, and two that can be killed."""
    os.environ["RAY_raylet_start_wait_time_s"] = "300"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    from ray.cluster_utils import Cluster

    memory = 100 * 2**20
    cluster = Cluster(True, head_node_args=dict(num_cpus=0, include_dashboard=False, object_store_memory=memory))
    ray.nodes_to_kill = [cluster.add_node(num_cpus=2, object_store_memory=memory) for _ in range(2)]
    ray.cluster = cluster
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"port": 18765})
    yield ray
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.parametrize("batch_format", ["pyarrow", "numpy", "pandas"])
def test_ray_data(ray, tmp_path, batch_format):
    """Parquet in and out, rows in order, on two nodes."""
    import ray.data
    from pyarrow import parquet

    (tmp_path / "in").mkdir()
    for first in range(0, len(ROWS), 50):
        parquet.write_table(corpus().slice(first, 50), tmp_path / "in" / f"{first:05}.parquet")
    dataset = ray.data.read_parquet(str(tmp_path / "in"))
    mapped = Map(network(), "x", "y", keep=["id"]).apply(dataset, batch_size=64, batch_format=batch_format)
    if batch_format == "pyarrow":
        mapped.write_parquet(str(tmp_path / "out"))
        table = parquet.read_table(tmp_path / "out")
        assert table["id"].to_pylist() == list(range(len(ROWS))) and same(table["y"].to_pylist(), right())
    else:
        rows = mapped.take_all()
        assert [row["id"] for row in rows] == list(range(len(ROWS))) and same([row["y"] for row in rows], right())


def test_ray_data_says_what_is_wrong(ray):
    import ray.data

    dataset = ray.data.from_arrow(corpus())
    with pytest.raises(Exception, match="no column 'z' in the batch"):
        Map(network(), "z").apply(dataset, actors=1).take(1)


def post(body, session=None):
    """(status, answer) of a request over HTTP."""
    headers = {"x-session-id": session} if session else {}
    request = urllib.request.Request("http://127.0.0.1:18765/net", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Client:
    """A live sequence, which goes on as if nothing had happened as long as it can."""

    def __init__(self, handle, name):
        self.handle, self.name = handle.options(session_id=name), name
        self.frames = random(len(name) * 31 + ord(name[-1]), 2000, 5)
        self.right = network().stream().run(self.frames)
        self.done, self.wrong, self.errors, self.position = 0, 0, [], 0

    async def send(self, count):
        """Send the next chunk."""
        part = slice(self.position, self.position + count)
        begun = time.monotonic()
        try:
            start = self.position == 0
            y = await self.handle.step.remote(self.frames[part], self.name, sequence_start=start)
        except Exception as error:
            self.errors.append((type(error).__mro__, time.monotonic() - begun))
            self.position = 0
            return
        self.wrong += not np.array_equal(y, self.right[part])
        self.done, self.position = self.done + 1, self.position + count

    async def talk(self, until):
        while time.monotonic() < until and self.position < 1990:
            await self.send(5)
            await asyncio.sleep(0.05)


def test_ray_serve(ray):
    """Sequences follow when replicas are added and taken away; unknown ones are told; a node dies."""
    from ray import serve

    def deploy(replicas, **options):
        app = deployment(
            network(), max_streams=64, num_replicas=replicas, ray_actor_options={"num_cpus": 0.4}, **options
        )
        return serve.run(app, name="net", route_prefix="/net")

    handle = deploy(2)
    clients = [Client(handle, f"s{index}") for index in range(12)]

    async def everyone(count):
        await asyncio.gather(*(client.send(count) for client in clients))

    async def some(*of, seconds, meanwhile=None):
        tasks = [asyncio.create_task(client.talk(time.monotonic() + seconds)) for client in of]
        if meanwhile:
            await asyncio.sleep(2)
            await asyncio.to_thread(meanwhile)
        await asyncio.gather(*tasks)

    async def through():
        await everyone(7)
        await everyone(1)
        with pytest.raises(rnnfast.errors.ClosedError, match="'z' is not known and this is not its first chunk"):
            await handle.options(session_id="z").step.remote(ROWS[0], "z")
        await some(*clients, seconds=12, meanwhile=lambda: deploy(4))  # more replicas, other settings, fewer replicas
        await everyone(3)
        await some(*clients, seconds=12, meanwhile=lambda: deploy(3, max_wait=0.002))
        await everyone(3)
        assert not any(client.errors or client.wrong for client in clients)

        before = [client.done for client in clients]
        await some(*clients, seconds=15, meanwhile=lambda: ray.cluster.remove_node(ray.nodes_to_kill[0], False))
        dead = [client for client in clients if client.errors]
        assert dead and len(dead) < len(clients) and not any(client.wrong for client in clients)
        assert max(seconds for client in dead for _, seconds in client.errors) < SECONDS
        kinds = {kind for client in dead for mro, _ in client.errors for kind in mro}
        assert rnnfast.errors.ClosedError in kinds or ray.exceptions.RayActorError in kinds
        assert all(client.done > n + 5 for client, n in zip(clients, before))  # also those that began anew

    asyncio.run(through())

    # Over HTTP: a chunk, the state given to another sequence, a whole sequence, and what is wrong.
    frames, wanted = clients[0].frames[:9], clients[0].right[:9]
    status, answer = post({"inputs": frames[:4].tolist(), "sequence_start": True, "return_state": True}, "h")
    assert status == 200 and np.array_equal(np.float32(answer["outputs"]), wanted[:4])
    status, other = post({"inputs": frames[4:].tolist(), "sequence_start": True, "state": answer["state"]}, "i")
    assert status == 200 and np.array_equal(np.float32(other["outputs"]), wanted[4:])
    status, answer = post({"inputs": frames[4:].tolist(), "sequence_end": True}, "h")
    assert status == 200 and np.array_equal(np.float32(answer["outputs"]), wanted[4:])
    status, answer = post({"inputs": frames[:1].tolist()}, "h")
    assert status == 400 and "'h' is not known" in answer["error"]
    status, answer = post({"inputs": frames.tolist()})
    assert status == 200 and np.array_equal(np.float32(answer["outputs"]), wanted)
    for body, session, message in (
        ({"x": 1}, "h", "expected an object with some of"),
        ({"inputs": [[1.0]], "sequence_start": True}, "k", "expected float32 [5]"),
        ({"inputs": [[1.0]], "sequence_start": 1}, "k", "sequence_start is 1, expected true or false"),
        ({"sequence_start": True}, "k", "no frames"),
        ({"inputs": [[1.0]], "state": []}, "i", "a state is given with sequence_start only"),
        ({"inputs": [[1.0]], "sequence_end": True}, None, "without the header x-session-id"),
    ):
        status, answer = post(body, session)
        assert status == 400 and message in answer["error"], answer
    # What failed has changed nothing: the sequence goes on.
    status, answer = post({"inputs": frames.tolist()}, "i")
    assert status == 200
    serve.delete("net")


def test_autoscaling(ray):
    """Live sequences, not requests, decide the number of replicas."""
    from ray import serve

    app = deployment(
        network(),
        name="scaled",
        max_streams=64,
        target_sequences=4,
        ray_actor_options={"num_cpus": 0.2},
        autoscaling_config=dict(min_replicas=1, max_replicas=3, upscale_delay_s=1, metrics_interval_s=0.5),
    )
    handle = serve.run(app, name="scaled", route_prefix="/scaled")
    for index in range(8):
        handle.options(session_id=f"a{index}").step.remote(ROWS[9], f"a{index}", sequence_start=True).result()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        replicas = serve.status().applications["scaled"].deployments["scaled"].replica_states.get("RUNNING", 0)
        if replicas == 2:
            break
        time.sleep(0.5)
    assert replicas == 2
    serve.delete("scaled")
