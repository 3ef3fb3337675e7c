"""Which replica has which sequence, and states on their way from one replica to another.

An Exchange is an actor of its own. A replica asks it when a sequence begins, and when a frame comes of a sequence that
it does not have; no other frame costs a call. So a sequence has one owner whatever the router does, and follows its
frames to another replica when replicas are added, drained or deployed anew.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

POLL = 0.5  # seconds after which a replica asks again, which says that it lives
SILENCE = 2.0  # seconds without a word of a replica after which it is taken for dead
HAND_OVER = 4.0  # seconds within which a replica that lives gives a state away


class Member:
    """A replica: the sequences that it is to give away, and when it was last heard of."""

    def __init__(self):
        self.wanted, self.news, self.seen = [], asyncio.Event(), time.monotonic()

    def ask(self, sequence):
        """Ask it for a sequence; its next poll returns at once."""
        self.wanted.append(sequence)
        self.news.set()


class Exchange:
    """The owners of live sequences, and the states that replicas left behind.

    A state travels as a tuple of one value; None says that there is none.

    Args:
        keep: Seconds after which a state that a replica left behind is forgotten; and seconds without any replica after
            which the actor ends.
    """

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._members: dict[str, Member] = {}
        self._owners: dict[str, tuple[str, int]] = {}  # sequence -> replica, number of the claim
        self._left: dict[str, tuple[float, Any]] = {}  # sequence -> when it was left, state
        self._asked: dict[str, asyncio.Future[Any]] = {}
        self._locks: dict[str, list[Any]] = {}  # sequence -> lock, how many use it
        self._claims, self._seen = 0, time.monotonic()
        self._ending: asyncio.Task[None] | None = None

    async def poll(self, replica: str, held: dict[str, int] | None = None) -> list[str] | None:
        """Wait until a replica is to give sequences away, or POLL seconds.

        Args:
            replica: The replica's name.
            held: The sequences that the replica has with the numbers of their claims, where it is new here.

        Returns:
            The sequences, each of which `give` answers. None where the replica is not known: it says what it has.
        """
        self._tidy()
        self._ending = self._ending or asyncio.create_task(self._end_when_alone())
        member = self._members.get(replica)
        if member is None:
            if held is None:
                return None
            member = self._members[replica] = Member()
            for sequence, claim in held.items():
                if sequence not in self._owners and sequence not in self._left:
                    self._owners[sequence] = replica, claim
                    self._claims = max(self._claims, claim)
                elif self._owners.get(sequence) != (replica, claim):
                    member.ask(sequence)  # it began anew elsewhere
        if not member.wanted:
            member.news.clear()
            try:
                await asyncio.wait_for(member.news.wait(), POLL)
            except asyncio.TimeoutError:
                pass
        member.seen = self._seen = time.monotonic()
        wanted, member.wanted = member.wanted, []
        return wanted

    async def claim(self, replica: str, sequence: str, begin: bool) -> tuple[int, Any]:
        """Make a replica the owner of a sequence, after its owner has given it away.

        Args:
            replica: The replica's name.
            sequence: The sequence.
            begin: True if the sequence begins; False if it goes on, and its state is wanted.

        Returns:
            (number of the claim, state). The state is None if there is none, and then the sequence has no owner unless
            it begins.
        """
        users = self._locks.setdefault(sequence, [asyncio.Lock(), 0])
        users[1] += 1
        try:
            async with users[0]:
                if not begin and self._owners.get(sequence, ("",))[0] == replica:
                    return self._owners[sequence][1], None  # another request of this replica was faster
                state = await self._taken(replica, sequence)
                if not begin and state is None:
                    return 0, None
                self._claims += 1
                self._owners[sequence] = replica, self._claims
                return self._claims, state
        finally:
            users[1] -= 1
            if not users[1]:
                del self._locks[sequence]

    async def _taken(self, replica, sequence):
        """The state of a sequence, which nobody has afterwards."""
        owner = self._owners.get(sequence, (None, 0))[0]
        state = None
        if owner != replica and self._lives(owner):
            future = self._asked[sequence] = asyncio.get_running_loop().create_future()
            self._members[owner].ask(sequence)
            deadline = time.monotonic() + HAND_OVER
            while not future.done() and time.monotonic() < deadline and self._lives(owner):
                await asyncio.wait([future], timeout=POLL / 2)
            state = future.result() if future.done() else None
            del self._asked[sequence]
        self._owners.pop(sequence, None)
        left = self._left.pop(sequence, (0, None))[1]
        return left if state is None else state

    def _lives(self, replica):
        """Return whether a replica was heard of; the sequences of one that was not are nobody's."""
        member = self._members.get(replica)
        if member is not None and time.monotonic() - member.seen > SILENCE:
            del self._members[replica]
            member = None
        return member is not None

    def give(self, sequence: str, state: Any) -> None:
        """Take a state from a replica that was asked for it; None where it has no such sequence."""
        future = self._asked.get(sequence)
        if future is not None and not future.done():
            future.set_result(state)

    def leave(self, replica: str, states: dict[str, Any]) -> None:
        """Take the states of a replica that ends."""
        for sequence, state in states.items():
            if self._owners.get(sequence, (None, 0))[0] == replica:
                del self._owners[sequence]
                self._left[sequence] = time.monotonic(), state
                self.give(sequence, state)
        self._members.pop(replica, None)

    def ended(self, sequence: str, claim: int) -> None:
        """Forget a sequence that ended, unless it was claimed again."""
        if self._owners.get(sequence, (None, 0))[1] == claim:
            del self._owners[sequence]

    def counts(self) -> dict[str, int]:
        """Return how many replicas, owned sequences and states left behind there are."""
        return {"replicas": len(self._members), "sequences": len(self._owners), "left": len(self._left)}

    def _tidy(self):
        now = time.monotonic()
        for sequence in [s for s, (since, _) in self._left.items() if now - since > self._keep]:
            del self._left[sequence]

    async def _end_when_alone(self):
        """End the actor when no replica has been there for so long that all states left behind are forgotten."""
        while time.monotonic() - self._seen < self._keep:
            await asyncio.sleep(POLL)
        import ray

        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
