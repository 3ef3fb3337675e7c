"""`python -m bench.serve`: measure `rnnfast serve` next to Triton and MLServer; a table.

A generator of load on one core asks servers on another, over the loopback. Answers are compared with float64's, and
rnnfast's with the bits of a stream that runs alone, before anything is timed; rnnfast's are compared while it is timed,
too. The exit status is 1 if an answer was wrong or lost.

Triton and MLServer are measured if their commands are given. A command is called with the folder of its models, the
port of HTTP, that of gRPC and that of its metrics; bench/peers has such commands, and says how to install the servers.
"""

import contextlib
import gc
import json
import os
import pathlib
import sys
import tempfile
import time

import click
import numpy as np

from bench import environment, report, serve_messages, serve_servers
from bench.serve_load import PROTOCOLS, Client, GrpcStream, Http, ask, closed_loop, open_loop, percentile
from bench.serve_models import CLIENTS, RATE, SAMPLES, STEPS, TURNS, UNITS, lstm, make_models, sequences

FILE = click.Path(dir_okay=False, path_type=pathlib.Path)
GROUPS = ("lstm", "silero", "overhead", "idle")
PERIOD, VOICES, STREAMS = 0.032, 16, 500  # seconds of a frame of sound, different sounds, live streams
LEAST = 50  # live streams below which no fewer are tried
LIVE, IDLE = 20.0, 20.0  # seconds of live streams, and of an idle server
# Largest difference from float64, of outputs up to 1.1; rnnfast's and onnxruntime's is 2.3e-7.
TOLERANCE = 2e-6
# Protocols that a peer speaks, and (peer, protocol) -> the least ratio of rates.
SPOKEN = {
    "rnnfast": list(PROTOCOLS),
    "triton": list(PROTOCOLS),
    "triton-oldest": list(PROTOCOLS),
    "mlserver": ["HTTP JSON", "gRPC"],
}
FASTER = {
    ("triton", "HTTP binary"): 2,
    ("triton", "gRPC stream"): 2,
    ("triton", "gRPC"): 1.1,
    ("mlserver", "HTTP JSON"): 6,
    ("mlserver", "gRPC"): 1.6,
}
# Peer -> the most that p99 may be of the peer's, both at half of the peer's highest rate.
SOONER = {"triton": 1 / 2, "mlserver": 1 / 3}
TARGETS = {"silero p99": 20, "overhead": 120, "idle cpu": 0.1, "idle memory": 120}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("groups", nargs=-1, metavar="[lstm|silero|overhead|idle]...", type=click.Choice(GROUPS))
@click.option("--serve", default=None, metavar="COMMAND", help="The command of the server (default: rnnfast serve).")
@click.option("--triton", metavar="COMMAND", help="A command that starts Triton.")
@click.option("--oldest", is_flag=True, help="Measure Triton with the other strategy of its sequence batcher, too.")
@click.option("--mlserver", metavar="COMMAND", help="A command that starts MLServer.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="In which servers take turns.")
@click.option("--seconds", default=2.0, show_default=True, type=click.FloatRange(0.05), help="Of each measurement.")
@click.option("--streams", default=STREAMS, show_default=True, type=click.IntRange(1), help="Live streams of Silero.")
@click.option("--json", "json_file", metavar="FILE", type=FILE, help="Write the results there.")
@click.option("--markdown", "markdown_file", metavar="FILE", type=FILE, help="Write the table there.")
def main(groups, serve, triton, oldest, mlserver, rounds, seconds, streams, json_file, markdown_file):
    """Measure a server of models next to others: all groups of cases, or those named."""
    commands = {
        "rnnfast": serve or serve_servers.own_command(),
        "triton": triton,
        "triton-oldest": triton if oldest else None,
        "mlserver": mlserver,
    }
    results = run(
        {name: command for name, command in commands.items() if command}, groups or GROUPS, rounds, seconds, streams
    )
    text = markdown(results)
    report.write({json_file: json.dumps(results, indent=1) + "\n", markdown_file: text})
    click.echo(text)
    if problems(results):
        sys.exit(1)


# ------------------------------------------------------------------------------------------------ measuring
def run(commands, groups, rounds, seconds, streams):
    """Measure groups of cases, and describe the machine."""
    others, start = environment.others(), time.monotonic()
    results = {"machine": environment.machine(), "rounds": rounds, "seconds": seconds, "commands": commands}
    _, results["removed"] = environment.clean(os.environ, 1)
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder, serve_servers.pinned():
        folder = pathlib.Path(folder)
        make_models(folder)
        if "lstm" in groups:
            results["lstm"] = measure_lstm(folder, commands, rounds, seconds)
        own = {"rnnfast": commands["rnnfast"]}
        if "silero" in groups:
            results["silero"] = measure_silero(folder, own, streams)
        if "overhead" in groups:
            results["overhead"] = measure_overhead(folder, own, rounds, seconds)
        if "idle" in groups:
            results["idle"] = measure_idle(folder, own)
    elapsed = time.monotonic() - start
    return results | {"others": None if others is None else (environment.others() - others) / elapsed}


@contextlib.contextmanager
def started(folder, commands):
    """Start servers, and yield {name: Server} of those that are ready and {name: reason} of the others."""
    with contextlib.ExitStack() as stack:
        servers, failed = {}, {}
        for name, command in commands.items():
            try:
                server = serve_servers.Server(name, command, folder / name, folder / f"{name}.log")
                servers[name] = stack.enter_context(server)
            except OSError as e:
                failed[name] = str(e)
        yield servers, failed


def measure_lstm(folder, commands, rounds, seconds):
    """Measure eight sequences at a time of an LSTM of 64 units at full load and at half load.

    Returns a dict: "protocols", a list of records; "failed", {server: reason}. A record has "protocol"; "results",
    {server: {"status", "rate", "server", "generator"}}: quartiles of requests a second, the server's microseconds of
    processor time a request and the generator's share of a core; "half", {peer: {"rate", server: {"p50", "p99",
    "lost"}}}: milliseconds at half of the peer's highest rate.
    """
    data, records = sequences(), []
    alone = alone_lstm(data)
    with started(folder, commands) as (servers, failed):
        for protocol in PROTOCOLS:
            spoken = {name: server for name, server in servers.items() if protocol in SPOKEN[name]}
            records.append({"protocol": protocol} | measure_protocol(protocol, spoken, data, alone, rounds, seconds))
    return {"protocols": records, "failed": failed}


def measure_protocol(protocol, servers, data, alone, rounds, seconds):
    """Return "results" and "half" of a record of `measure_lstm`."""
    results, ready = {}, {}
    for name, server in servers.items():
        results[name], clients = checked(protocol, server, data, alone if name == "rnnfast" else None)
        if clients:
            ready[name] = clients
    found = {name: [] for name in ready}
    for _ in range(rounds + 1):
        for name in list(ready):
            before = servers[name].cpu()
            full = attempt(closed_loop, name, ready, results, seconds)
            if full:
                cpu = (servers[name].cpu() - before) / len(full["seconds"]) * 1e6
                found[name].append((full["rate"], cpu, full["cpu"], full["wrong"]))
    for name in ready:
        rate, cpu, generator, wrong = zip(*found[name][1:])  # the first one warms up
        results[name] |= {
            "rate": np.percentile(rate, [25, 50, 75]).tolist(),
            "server": float(np.median(cpu)),
            "generator": float(np.median(generator)),
            "wrong": sum(wrong),
        }
    half = {name: half_load(ready, name, results, rounds, seconds) for name in list(ready)}
    for clients in ready.values():
        close(clients)
    return {"results": results, "half": half}


def attempt(loop, name, ready, results, *effort):
    """Return what a loop measures; if the server refuses, take it out of `ready`, note why and return None."""
    try:
        return loop(ready[name], *effort)
    except (OSError, serve_messages.RefusedError) as e:
        results[name] = {"status": "failed", "message": f"{type(e).__name__}: {e}"}
        close(ready.pop(name))
        return None


def half_load(ready, peer, results, rounds, seconds):
    """Measure a peer and rnnfast at half of the peer's rate.

    Returns {"rate", server: {"p50", "p99", "late", "lost", "wrong"}}, milliseconds.
    """
    rate, found = results[peer]["rate"][1] / 2 if peer in ready else 0, {}
    for _ in range(rounds):
        for name in dict.fromkeys(name for name in (peer, "rnnfast") if peer in ready and name in ready):
            found.setdefault(name, []).append(attempt(open_loop, name, ready, results, rate, seconds))
    return {"rate": rate} | {name: latencies(samples) for name, samples in found.items() if name in ready}


def latencies(samples):
    """Return medians over samples of percentiles in milliseconds, and sums of lost and wrong answers."""
    p50, p99 = (float(np.median([percentile(s["seconds"], q) for s in samples])) * 1e3 for q in (50, 99))
    late = max(s["late"] for s in samples) * 1e3
    return {"p50": p50, "p99": p99, "late": late} | {k: sum(s[k] for s in samples) for k in ("lost", "wrong")}


def lstm_request(protocol, connection, data, client, step):
    """Return a prepared request for a client's frame of the LSTM."""
    x, sequence = data.x[client, step], data.sequence(client, step)
    if protocol.startswith("HTTP"):
        form = serve_messages.BINARY if protocol == "HTTP binary" else serve_messages.JSON
        return serve_messages.http_request("lstm", {"x": x}, sequence, form)
    message = serve_messages.grpc_request("lstm", "x", x.shape, sequence, str(step))
    return connection.request(message + serve_messages.grpc_tensor(x))


def checked(protocol, server, data, alone):
    """Return how a server's outputs compare with the right ones, and clients if they are good, else None.

    Args:
        alone: The outputs that must be equal to the bit, while the server is timed too; None for any within TOLERANCE
            of float64's.
    """
    clients = []
    try:
        for k in range(CLIENTS):
            connection = PROTOCOLS[protocol](server.grpc if "gRPC" in protocol else server.http)
            requests = [lstm_request(protocol, connection, data, k, t) for t in range(TURNS * STEPS)]
            clients.append(Client(connection, requests, numbered=not connection.one_at_a_time))
        answers = ask(clients)
        outputs = [[client.connection.outputs(a)["y"] for a in found] for client, found in zip(clients, answers)]
    except (OSError, serve_messages.RefusedError, KeyError, ValueError) as e:
        close(clients)
        return {"status": "failed", "message": f"{type(e).__name__}: {e}"}, None
    outputs = np.array(outputs)
    error = float(np.abs(outputs - data.right).max())
    if not error <= TOLERANCE or alone is not None and not np.array_equal(outputs, alone):
        close(clients)
        return {"status": "wrong", "error": error}, None
    for client, found in zip(clients, answers if alone is not None else ()):
        client.right = [client.connection.body(answer) for answer in found]
    return {"status": "ok", "error": error}, clients


def close(clients):
    """Close the connections of clients."""
    for client in clients:
        client.connection.close()


def alone_lstm(data):
    """Return the outputs of streams of the LSTM that run alone."""
    import rnnfast

    stream, outputs = rnnfast.load(lstm()).stream(), np.empty_like(data.right, np.float32)
    for k, frames in enumerate(data.x):
        for t, x in enumerate(frames):
            if t % STEPS == 0:
                stream.reset()
            outputs[k, t] = stream.step(x=x)
    return outputs


# ------------------------------------------------------------------------------------------------ live streams
class Frames:
    """The requests of a live stream, each made when it is sent: there are too many to keep."""

    def __init__(self, sequence, tensors):
        shape = (1, SAMPLES)
        self.first, self.next = (
            serve_messages.grpc_request("silero", "input", shape, (sequence, start, False)) for start in (True, False)
        )
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, step):
        return GrpcStream.request((self.next if step else self.first) + self.tensors[step])


def measure_silero(folder, commands, count):
    """Measure live streams of Silero VAD over gRPC streams, each a frame every 32 ms.

    Returns a list of records, one for `count` streams and, if these were too many, for fewer, until p99 is as wanted:
    {"streams", "p50", "p99", "max", "lost", "wrong", "frames", "server", "generator", "late"}: milliseconds, the
    server's microseconds of processor time a frame, the generator's share of a core. If the model is missing or the
    server fails, there is a "reason" instead.
    """
    from bench.streams import FILE as model

    if not model.exists():
        return [{"streams": count, "reason": f"{model.name} is not there"}]
    steps = int(LIVE / PERIOD) + 1
    tensors, right = sounds(model, steps)
    records = []
    while True:
        # Each number has a server of its own, which has no frames left from a number that was too large.
        with started(folder, commands) as (servers, failed):
            server = servers.get("rnnfast")
            found = live(server, count, tensors, right) if server else {"reason": failed["rnnfast"]}
        records.append({"streams": count} | found)
        if "reason" in found or found["p99"] < TARGETS["silero p99"] or count < LEAST:
            return records
        count = count * 4 // 5


def sounds(model, steps):
    """Return [voice][step] of prepared tensors and of the bytes that the answers must hold."""
    import rnnfast

    sound = (0.1 * np.random.default_rng(1).standard_normal((VOICES, steps, 1, SAMPLES))).astype(np.float32)
    stream, right = rnnfast.load(model).stream(sr=RATE), []
    for voice in sound:
        stream.reset()
        right.append([serve_messages.block(6, stream.step(input=frame).tobytes()) for frame in voice])
    return [[serve_messages.grpc_tensor(frame) for frame in voice] for voice in sound], right


def live(server, count, tensors, right):
    """Return a record of `measure_silero`, without "streams"."""
    clients = []
    try:
        for k in range(count):
            client = Client(GrpcStream(server.grpc), Frames(k + 1, tensors[k % VOICES]), right[k % VOICES])
            clients.append(client)
        gc.collect()
        gc.freeze()
        before = server.cpu()
        found = open_loop(clients, count / PERIOD, LIVE)
        cpu = server.cpu() - before
    except (OSError, serve_messages.RefusedError) as e:
        return {"reason": f"{type(e).__name__}: {e}"}
    finally:
        gc.unfreeze()
        close(clients)
    if not found["seconds"]:
        return {"reason": "no frame was answered"}
    return {
        "max": max(found["seconds"]) * 1e3,
        "frames": len(found["seconds"]),
        "server": cpu / len(found["seconds"]) * 1e6,
        "generator": found["cpu"],
        **latencies([found]),
    }


# ------------------------------------------------------------------------------------------------ overhead and idling
def measure_overhead(folder, commands, rounds, seconds):
    """Measure the server's processor time for a request over HTTP with binary tensors, beside the model's own.

    Returns a list of records: {"case", "server", "model", "rate"}: microseconds of processor time a request; with a
    "reason" instead of figures where the server refused.
    """
    data, records = sequences(), []
    cases = ("a sequence", 1, False), (f"{CLIENTS} sequences", CLIENTS, False), ("without a sequence", 1, True)
    with started(folder, commands) as (servers, failed):
        for title, count, whole in cases:
            try:
                found = (
                    {"reason": failed["rnnfast"]}
                    if failed
                    else overhead(servers["rnnfast"], data, count, whole, rounds, seconds)
                )
            except (OSError, serve_messages.RefusedError) as e:
                found = {"reason": f"{type(e).__name__}: {e}"}
            records.append({"case": title} | found)
    return records


def overhead(server, data, count, whole, rounds, seconds):
    """Return the figures of a record of `measure_overhead` for a number of clients.

    Args:
        whole: Whether requests have no sequence and bring their states.
    """
    clients, samples = [], []
    for k in range(count):
        requests = [
            stateless(x) if whole else lstm_request("HTTP binary", None, data, k, t) for t, x in enumerate(data.x[k])
        ]
        clients.append(Client(Http(server.http), requests))
    try:
        for _ in range(rounds + 1):
            before = server.cpu()
            found = closed_loop(clients, seconds)
            samples.append((server.cpu() - before) / len(found["seconds"]) * 1e6)
    finally:
        close(clients)
    # The first round warms up.
    return {"server": float(np.median(samples[1:])), "model": model_time(data, whole), "rate": found["rate"]}


def stateless(x):
    """Return a request for one step of the LSTM without a sequence, from states of 0."""
    zeros = np.zeros((1, 1, UNITS), np.float32)
    return serve_messages.http_request("lstm", {"x": x, "h": zeros, "c": zeros}, None, serve_messages.BINARY)


def model_time(data, whole, calls=2000):
    """Return the microseconds of processor time of the model alone: of a call, or of a step of a stream."""
    import rnnfast

    model, zeros = rnnfast.load(lstm()), np.zeros((1, 1, UNITS), np.float32)
    x, stream = data.x[0, 0], model.stream()
    step = (lambda: model(x=x, h=zeros, c=zeros)) if whole else (lambda: stream.step(x=x))
    times = []
    for _ in range(5):
        begun = time.process_time()
        for _ in range(calls):
            step()
        times.append((time.process_time() - begun) / calls * 1e6)
    return float(np.median(times))


def measure_idle(folder, commands):
    """Measure a server that has answered and waits: {"cpu", "memory"}: percent of a core, and megabytes."""
    data = sequences()
    with started(folder, commands) as (servers, failed):
        if failed:
            return {"reason": failed["rnnfast"]}
        server, asked = servers["rnnfast"], {}
        for protocol in PROTOCOLS:
            asked[protocol] = checked(protocol, server, data, None)
        time.sleep(2)
        before = server.cpu()
        time.sleep(IDLE)
        found = {"cpu": (server.cpu() - before) / IDLE * 100, "memory": server.memory() / 1e6}
        for _, clients in asked.values():
            close(clients or ())
    return found


# ------------------------------------------------------------------------------------------------ Markdown
def markdown(results):
    """Return the Markdown tables of all that was measured."""
    lines = [
        *report.heading(results["machine"], "Servers of models on "),
        "",
        "The generator of load has one core, the server another; loopback. Full load: each of "
        f"{CLIENTS} sequences of {STEPS} frames sends the next frame as soon as the last is answered; the median of "
        f"{results['rounds']} rounds of {results['seconds']:g} s in which the servers take turns. Half load: frames "
        "are sent at half of the rate that a peer reaches at full load, whether or not answers come; milliseconds from "
        "the time at which a frame was to be sent. `server us`: the server's processor time a request. `generator`: "
        "the share of its core that the generator used. In bold: what misses its target.",
    ]
    if results["others"] is not None:
        lines += ["", f"Meanwhile other processes, the servers among them, took {results['others']:.0%} of a core."]
    if "lstm" in results:
        lines += ["", f"## LSTM {UNITS} with {CLIENTS} sequences", "", *_full(results["lstm"])]
        lines += ["", *_half(results["lstm"])]
        lines += [f"\n{name} is not measured: {reason}." for name, reason in results["lstm"]["failed"].items()]
    if "silero" in results:
        lines += ["", "## Live streams of Silero VAD 6 over gRPC streams", "", *_silero(results["silero"])]
    if "overhead" in results:
        lines += ["", "## Processor time of a request over HTTP, binary tensors", "", *_overhead(results["overhead"])]
    if "idle" in results:
        lines += ["", "## An idle server", "", *_idle(results["idle"])]
    notes = problems(results)
    lines += ["", *notes] if notes else []
    return "\n".join([*lines, *report.removed(results)]) + "\n"


def _full(found):
    rows = []
    for record in found["protocols"]:
        ours = record["results"].get("rnnfast", {}).get("rate")
        for name, result in record["results"].items():
            cells = [record["protocol"], name]
            if "rate" not in result:
                rows.append([*cells, result["status"], "", "", "", "", ""])
                continue
            low, rate, high = result["rate"]
            ratio, least = ours and ours[1] / rate, FASTER.get((_target_of(name), record["protocol"]))
            times = "" if name == "rnnfast" or not ratio else report.bold(f"{ratio:.2f}", least and ratio < least)
            use = [f"{result['server']:.0f}", f"{result['generator']:.0%}"]
            rows.append([*cells, f"{rate:,.0f}", f"{low:,.0f}-{high:,.0f}", *use, times, f"{least:g}" if least else ""])
    header = [
        "protocol",
        "server",
        "requests a second",
        "quartiles",
        "server us",
        "generator",
        "rnnfast times",
        "target",
    ]
    return report.table(header, rows)


def _target_of(name):
    """Return the peer whose targets a server has: Triton's are those of both strategies."""
    return name.removesuffix("-oldest")


def _half(found):
    rows = []
    for record in found["protocols"]:
        for peer, half in record["half"].items():
            for name in dict.fromkeys((peer, "rnnfast")):
                if name not in half or peer not in half:
                    continue
                part, most = half[name], SOONER.get(_target_of(peer)) if name == "rnnfast" else None
                share = part["p99"] / half[peer]["p99"]
                text = report.bold(f"{share:.2f}", most and share > most) if name != peer else ""
                numbers = [f"{part['p50']:.2f}", f"{part['p99']:.2f}", text, f"{most:.2f}" if most else ""]
                rows.append([record["protocol"], f"{half['rate']:,.0f}", name, *numbers])
    return report.table(["protocol", "a second", "server", "p50 ms", "p99 ms", "of the peer's p99", "target"], rows)


def _silero(records):
    rows = []
    for record in records:
        if "reason" in record:
            yield f"{record['streams']} streams are not measured: {record['reason']}."
            continue
        rows.append(
            [
                f"{record['streams']}",
                f"{record['p50']:.2f}",
                report.bold(f"{record['p99']:.2f}", record["p99"] > TARGETS["silero p99"]),
                f"{record['max']:.1f}",
                *(f"{record[name]}" for name in ("frames", "lost", "wrong")),
                f"{record['server']:.0f}",
                f"{record['generator']:.0%}",
            ]
        )
    header = ["streams", "p50 ms", "p99 ms", "longest ms", "frames", "lost", "wrong", "server us", "generator"]
    if rows:
        yield from report.table(header, rows)
        yield ""
        yield f"p99 is to be under {TARGETS['silero p99']} ms, and every reply that of the stream alone, to the bit."


def _overhead(records):
    rows = []
    for record in records:
        if "reason" in record:
            yield f"{record['case']} is not measured: {record['reason']}."
            yield ""
            continue
        overhead = record["server"] - record["model"]
        text = report.bold(f"{overhead:.0f}", overhead > TARGETS["overhead"])
        numbers = [f"{record['server']:.1f}", f"{record['model']:.1f}", text, f"at most {TARGETS['overhead']}"]
        rows.append([record["case"], f"{record['rate']:,.0f}", *numbers])
    yield from report.table(["case", "a second", "server us", "model us", "overhead us", "target"], rows)


def _idle(found):
    if "reason" in found:
        return [f"Not measured: {found['reason']}."]
    cpu, memory = found["cpu"], found["memory"]
    rows = [
        ["% of a core", report.bold(f"{cpu:.3f}", cpu > TARGETS["idle cpu"]), f"at most {TARGETS['idle cpu']}"],
        ["MB", report.bold(f"{memory:.0f}", memory > TARGETS["idle memory"]), f"at most {TARGETS['idle memory']}"],
    ]
    return report.table(["what", "found", "target"], rows)


def problems(results):
    """Return a line for each server that failed, or whose answers were wrong or lost."""
    lines = []
    for record in results.get("lstm", {}).get("protocols", ()):
        for name, result in record["results"].items():
            if result["status"] == "failed":
                lines.append(f"{name}, {record['protocol']}, failed: {' '.join(result['message'].split())[:300]}.")
            elif result["status"] == "wrong":
                lines.append(f"{name}, {record['protocol']}, is wrong: off by {result['error']:.2g}.")
            elif result["wrong"]:
                lines.append(f"{name}, {record['protocol']}: {result['wrong']} answers were wrong under load.")
        for half in record["half"].values():
            for name, part in half.items():
                if name != "rate" and (part["lost"] or part["wrong"]):
                    lines.append(f"{name}, {record['protocol']}: {part['lost']} answers lost, {part['wrong']} wrong.")
    for record in results.get("silero", ()):
        if "reason" not in record and (record["lost"] or record["wrong"]):
            lines.append(f"{record['streams']} streams: {record['lost']} answers lost, {record['wrong']} wrong.")
    return lines


if __name__ == "__main__":
    main(prog_name="python -m bench.serve")
