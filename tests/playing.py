"""Random use of a pool of streams, each of them compared with one that runs alone."""

import concurrent.futures

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.cases import bits

# Actions on a pool, each with the seed of its random values.
ACTIONS = ("open", "open", "begin", "frames", "frames", "rows", "out", "run", "reset", "close")
USES = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2**32 - 1)), max_size=30)
property_test = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


def flat(value):
    """Return the arrays of a result or a state as a list."""
    if isinstance(value, dict):
        return list(value.values())
    return [a for part in value for a in flat(part)] if isinstance(value, tuple) else [value]


def same_bits(found, expected):
    assert [np.shape(a) for a in flat(found)] == [np.shape(a) for a in flat(expected)]
    assert bits(flat(found)) == bits(flat(expected))


def in_threads(work, count=5):
    """Call work(seed) in `count` threads at once; an error of one of them is raised."""
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(work, seed) for seed in range(count)]:
            done.result()


def at_time(results, t):
    """Return the results of frame t of a run."""
    return {name: a[:, t] for name, a in results.items()} if isinstance(results, dict) else results[:, t]


def play(pool, alone, frame, uses, rows=np.stack, part=lambda result, i: result[i], same=same_bits):
    """Do `uses` to a pool and compare every stream with one that runs alone.

    alone(state): a stream by itself; frame(rng): a frame for it; rows(frames): the argument of the array form of a
    step; part(result, i): the result of row i of such a step, in the form in which a stream alone returns it.
    """
    live, states = {}, [None]

    def by_rows(chosen, rng, out=None):
        frames = [frame(rng) for _ in chosen]
        results = pool.step(np.array(chosen), rows(frames), out=out)
        for i, stream in enumerate(chosen):
            same(part(results, i), live[stream].step(frames[i]))
        return results

    for action, seed in uses:
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(list(live))[: rng.integers(1, len(live) + 1)].astype(int).tolist() if live else []
        if action in ("open", "begin") and len(live) < pool.max_streams:
            state = states[seed % len(states)] if action == "begin" else None
            stream = pool.open(state)
            assert stream not in live
            live[stream] = alone(state)
        elif action == "frames":
            frames = {stream: frame(rng) for stream in chosen}
            results = pool.step(frames)
            assert list(results) == chosen
            for stream, result in results.items():
                same(result, live[stream].step(frames[stream]))
        elif chosen and action in ("rows", "out"):
            results = by_rows(chosen, rng)
            if action == "out":
                out = {name: np.full_like(a, 7) for name, a in zip(pool.outputs, flat(results))}
                out = out if len(out) > 1 else out[pool.outputs[0]]
                assert by_rows(chosen, rng, out) is out
        elif chosen and action == "run":
            lengths = rng.integers(0, 4, len(chosen))
            lengths[-1] = 3
            frames = [[frame(rng) for _ in range(3)] for _ in chosen]
            by_time = [rows([of_one[t] for of_one in frames]) for t in range(3)]
            sequences = (
                {name: np.stack([row[name] for row in by_time], axis=1) for name in by_time[0]}
                if isinstance(by_time[0], dict)
                else np.stack(by_time, axis=1)
            )
            results = pool.run(chosen, sequences, lengths=lengths)
            for i, stream in enumerate(chosen):
                for t in range(lengths[i]):
                    same(part(at_time(results, t), i), live[stream].step(frames[i][t]))
        elif chosen and action == "reset":
            pool.reset(chosen[0])
            live[chosen[0]].reset()
        elif chosen and action == "close":
            pool.close(chosen[0])
            del live[chosen[0]]
        states += [state for state in map(pool.state, live) if state is not None][:1]
        assert sorted(live) == sorted(pool.streams.tolist()) and len(pool) == len(live)
    for stream, other in live.items():
        if other.state is not None:
            same(pool.state(stream), other.state)
