"""The Exchange without Ray: a sequence has one owner, and its state goes to whoever claims it."""

import asyncio

import pytest

from rnnfast.ray import exchange
from rnnfast.ray.exchange import Exchange


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(exchange, "POLL", 0.02)
    monkeypatch.setattr(exchange, "SILENCE", 0.1)
    monkeypatch.setattr(exchange, "HAND_OVER", 0.3)


class Replica:
    """Answers an Exchange as a replica of Ray Serve does."""

    def __init__(self, home, name):
        self.home, self.name, self.held, self.states = home, name, {}, {}
        self.task = asyncio.create_task(self.answer())

    async def answer(self):
        held = {}
        while True:
            wanted = await self.home.poll(self.name, held)
            held = dict(self.held) if wanted is None else None
            for sequence in wanted or ():
                self.held.pop(sequence, None)
                self.home.give(sequence, self.states.pop(sequence, None))

    async def begin(self, sequence, state):
        self.held[sequence], _ = await self.home.claim(self.name, sequence, True)
        self.states[sequence] = (state,)

    async def go_on(self, sequence):
        claim, state = await self.home.claim(self.name, sequence, False)
        if state is not None:
            self.held[sequence], self.states[sequence] = claim, state
        return state


def run(body):
    """Run a test with an Exchange and two replicas."""

    async def main():
        home = Exchange(60.0)
        replicas = Replica(home, "a"), Replica(home, "b")
        await asyncio.sleep(0.01)
        await body(home, *replicas)
        for replica in replicas:
            replica.task.cancel()
        home._ending.cancel()

    asyncio.run(main())


def test_a_state_follows():
    async def body(home, a, b):
        await a.begin("s", 1)
        assert home.counts() == {"replicas": 2, "sequences": 1, "left": 0}
        assert await b.go_on("s") == (1,) and "s" not in a.held
        assert await a.go_on("s") == (1,) and "s" not in b.held
        assert await b.go_on("other") is None
        assert home.counts()["sequences"] == 1

    run(body)


def test_a_begin_elsewhere_takes_the_old_sequence_away():
    """The replica that had it must not go on with the old state when the router comes back to it."""

    async def body(home, a, b):
        await a.begin("s", 1)
        await b.begin("s", 2)
        assert "s" not in a.held and "s" not in a.states
        assert await a.go_on("s") == (2,)

    run(body)


def test_states_of_a_replica_that_ends():
    async def body(home, a, b):
        await a.begin("s", 1)
        await a.begin("t", None)
        a.task.cancel()
        home.leave("a", a.states)
        assert home.counts() == {"replicas": 1, "sequences": 0, "left": 2}
        assert await b.go_on("s") == (1,)
        assert await b.go_on("t") == (None,)
        assert await b.go_on("s") is None or "s" in b.held
        assert home.counts() == {"replicas": 1, "sequences": 2, "left": 0}

    run(body)


def test_a_dead_replica():
    """What it had is nobody's, after a while; it is waited for once."""

    async def body(home, a, b):
        await a.begin("s", 1)
        await a.begin("t", 2)
        a.task.cancel()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        assert await b.go_on("s") is None
        assert 0.05 < loop.time() - begun < 0.3
        begun = loop.time()
        assert await b.go_on("t") is None
        assert loop.time() - begun < 0.05
        await b.begin("s", 3)
        assert b.states["s"] == (3,)

    run(body)


def test_one_state_for_two_claims():
    """Two replicas that ask at once do not both get it."""

    async def body(home, a, b):
        await a.begin("s", 1)
        c = Replica(home, "c")
        got = await asyncio.gather(b.go_on("s"), c.go_on("s"))
        assert (1,) in got and sum("s" in replica.held for replica in (a, b, c)) == 1
        c.task.cancel()

    run(body)


def test_a_second_request_of_the_owner():
    async def body(home, a, b):
        await a.begin("s", 1)
        assert await home.claim("a", "s", False) == (a.held["s"], None)
        assert await b.go_on("s") == (1,)

    run(body)


def test_an_end_that_comes_late():
    """An end is that of a claim, not of the sequence that began with the same id since."""

    async def body(home, a, b):
        await a.begin("s", 1)
        old = a.held["s"]
        await a.begin("s", 2)
        home.ended("s", old)
        assert await b.go_on("s") == (2,)
        home.ended("s", b.held["s"])
        assert home.counts()["sequences"] == 0

    run(body)


def test_an_exchange_that_began_anew():
    """Replicas say what they have; where two have the same sequence, the later one keeps it."""

    async def main():
        home = Exchange(60.0)
        assert await home.poll("a") is None
        assert await home.poll("a", {"s": 5, "t": 6}) == []
        claim, _ = await home.claim("c", "u", True)
        assert claim > 6
        assert await home.poll("b", {"s": 3}) == ["s"]
        home._ending.cancel()

    asyncio.run(main())


def test_left_states_are_forgotten():
    async def main():
        home = Exchange(0.05)
        await home.poll("a", {"s": 1})
        home.leave("a", {"s": (1,)})
        await asyncio.sleep(0.1)
        await home.poll("b", {})
        assert home.counts()["left"] == 0
        home._ending.cancel()

    asyncio.run(main())
