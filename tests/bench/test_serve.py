"""`python -m bench.serve`: what it measures of a server, its table, and what it does without one."""

import json
import os
import pathlib
import shlex
import sys
import time

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from bench import serve, serve_models, serve_servers
from tests.bench.helpers import stored


def cells(text):
    """Return the rows of the tables of a text, as lists of cells."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_right_outputs_are_those_of_the_model():
    """The right outputs, by the reference, are those of a stream, and sequences begin where they are to."""
    data = serve_models.sequences()
    alone = serve.alone_lstm(data)
    assert np.abs(alone - data.right).max() < serve.TOLERANCE
    assert np.unique(alone).size > 0.9 * alone.size  # no sequence is another's
    found = [data.sequence(k, t) for k in range(serve.CLIENTS) for t in range(serve.TURNS * serve.STEPS)]
    assert len({id_ for id_, _, _ in found}) == serve.CLIENTS * serve.TURNS
    assert sum(start for _, start, _ in found) == sum(end for _, _, end in found) == serve.CLIENTS * serve.TURNS


def test_command_without_servers(tmp_path):
    """Servers that do not start are named with what they said; nothing is measured and the table says so."""
    fails = f"{shlex.quote(sys.executable)} -c 'raise SystemExit(\"no such library\")'"
    before, file = os.sched_getaffinity(0), tmp_path / "new" / "results.json"
    options = ["--serve", fails, "--mlserver", fails, "--json", str(file)]
    result = CliRunner().invoke(serve.main, ["lstm", "overhead", "idle", *options])
    assert result.exit_code == 0, result.output
    assert os.sched_getaffinity(0) == before
    for name in ("rnnfast", "mlserver"):
        assert f"{name} is not measured: {name} is not ready: no such library" in result.output
    assert result.output.count("Not measured") == 1 and result.output.count("a sequence is not measured") == 2
    assert serve.markdown(json.loads(file.read_text())) == result.output[:-1]
    assert CliRunner().invoke(serve.main, ["none"]).exit_code == 2


def test_a_crashed_server_leaves_nothing(tmp_path):
    """The processes that a server has started end with it, also where it ends by itself."""
    script = "sleep 600 & echo $! > {}; exit 3".format(shlex.quote(str(tmp_path / "child")))
    with serve.started(tmp_path, {"triton": f"sh -c {shlex.quote(script)}"}) as (servers, failed):
        assert not servers and "triton is not ready" in failed["triton"]
    child = pathlib.Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    for _ in range(200):
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the child lives")


def test_table():
    """Ratios to the peers, with what misses its target in bold; problems are named and decide the exit status."""

    def result(rate, **more):
        return {"status": "ok", "rate": [rate, rate, rate], "server": 1e6 / rate, "generator": 0.1, "wrong": 0} | more

    def part(p99, lost=0):
        return {"p50": 0.1, "p99": p99, "late": 0, "lost": lost, "wrong": 0}

    protocols = [
        {
            "protocol": "gRPC stream",
            "results": {"rnnfast": result(3000), "triton": result(2000, wrong=0)},
            "half": {"triton": {"rate": 1000, "triton": part(4.0), "rnnfast": part(1.0)}},
        },
        {
            "protocol": "gRPC",
            "results": {
                "rnnfast": result(3000, wrong=2),
                "triton": {"status": "wrong", "error": 0.5},
                "mlserver": result(1000),
            },
            "half": {"mlserver": {"rate": 500, "mlserver": part(9.0), "rnnfast": part(4.0, lost=3)}},
        },
        {
            "protocol": "HTTP JSON",
            "results": {"mlserver": {"status": "failed", "message": "RefusedError: 503"}},
            "half": {"mlserver": {"rate": 0}},
        },
    ]
    live = {"p50": 1.0, "max": 50.0, "frames": 9, "server": 61.0, "generator": 0.4, "late": 0.1}
    results = stored() | {
        "rounds": 3,
        "seconds": 2.0,
        "others": 0.5,
        "removed": {},
        "lstm": {"protocols": protocols, "failed": {}},
        "silero": [
            {"streams": 500, "p99": 21.0, "lost": 1, "wrong": 2, **live},
            {"streams": 400, "p99": 19.0, "lost": 0, "wrong": 0, **live},
        ],
        "overhead": [
            {"case": "one", "server": 150.0, "model": 2.0, "rate": 1000},
            {"case": "two", "server": 121.0, "model": 2.0, "rate": 1000},
        ],
        "idle": {"cpu": 0.05, "memory": 130.0},
    }
    text = serve.markdown(json.loads(json.dumps(results)))
    rows = cells(text)
    ours = [row for row in rows if row[1:2] == ["triton"] or row[1:2] == ["mlserver"]]
    assert [row[-2:] for row in ours] == [["**1.50**", "2"], ["", ""], ["3.00", "1.6"], ["", ""]]
    assert [row[2] for row in ours] == ["2,000", "wrong", "1,000", "failed"]
    shares = [row[-2:] for row in rows if row[2:3] == ["rnnfast"]]
    assert shares == [["0.25", "0.50"], ["**0.44**", "0.33"]]
    assert [row[2] for row in rows if row[0] in ("500", "400") and len(row) == 9] == ["**21.00**", "19.00"]
    assert [row[4] for row in rows if row[0] in ("one", "two")] == ["**148**", "119"]
    assert [row[1] for row in rows if row[0] in ("% of a core", "MB")] == ["0.050", "**130**"]
    assert serve.problems(results) == [
        "rnnfast, gRPC: 2 answers were wrong under load.",
        "triton, gRPC, is wrong: off by 0.5.",
        "rnnfast, gRPC: 3 answers lost, 0 wrong.",
        "mlserver, HTTP JSON, failed: RefusedError: 503.",
        "500 streams: 1 answers lost, 2 wrong.",
    ]
    assert all(line in text for line in serve.problems(results))


@pytest.fixture
def served():
    """Skip unless the server's packages are there."""
    for package in ("httptools", "uvloop", "orjson", "hpack", "prometheus_client", "onnx"):
        pytest.importorskip(package)


@pytest.mark.slow
def test_command_with_the_server(served, tmp_path, monkeypatch):
    """Every group measures a server, whose answers are right, also under load."""
    monkeypatch.setattr(serve, "LIVE", 0.5)
    monkeypatch.setattr(serve, "IDLE", 0.1)
    monkeypatch.setattr(serve, "model_time", lambda data, whole: 2.0)
    monkeypatch.setattr(serve, "TARGETS", serve.TARGETS | {"silero p99": 1e6})
    file = tmp_path / "results.json"
    options = ["--rounds", "1", "--seconds", "0.1", "--streams", "5", "--json", str(file)]
    result = CliRunner().invoke(serve.main, options)
    assert result.exit_code == 0, result.output
    results = json.loads(file.read_text())
    for record in results["lstm"]["protocols"]:
        found = record["results"]["rnnfast"]
        assert found["status"] == "ok" and found["error"] < serve.TOLERANCE
        assert found["rate"][1] > 0 and found["server"] > 0 and record["half"]["rnnfast"]["rnnfast"]["p99"] > 0
    (live,) = results["silero"]
    assert "is not there" in live["reason"] if "reason" in live else (live["frames"], live["lost"]) == (78, 0)
    assert all(record["server"] > 0 for record in results["overhead"]) and results["idle"]["memory"] > 1


@pytest.mark.slow
def test_wrong_answers_are_found(served, tmp_path):
    """Other outputs than those of a stream alone are wrong, be it by a bit, or under load only."""
    serve_models.make_models(tmp_path)
    data = serve_models.sequences()
    alone = serve.alone_lstm(data)
    command = {"rnnfast": serve_servers.own_command()}
    with serve.started(tmp_path, command) as (servers, failed):
        assert not failed
        for protocol in serve.PROTOCOLS:
            result, clients = serve.checked(protocol, servers["rnnfast"], data, alone)
            assert result["status"] == "ok"
            for client in clients:
                client.right[3] = b"none"
            wrong = serve.closed_loop(clients, 0.1)["wrong"]
            serve.close(clients)
            assert wrong > 0
        other = alone.copy()
        other[5, 7, 0, 0, 3] = np.nextafter(other[5, 7, 0, 0, 3], np.float32(9))
        result, clients = serve.checked("HTTP JSON", servers["rnnfast"], data, other)
        assert result["status"] == "wrong" and clients is None
