"""The processes of a server among each other: calls that fail, and lines that come too early."""

import asyncio

import pytest

pytest.importorskip("orjson")
from rnnfast.server.faults import UnavailableError
from rnnfast.server.peers import Peers


class FakeService:
    """What a process may be asked, with answers that are hard to send."""

    async def infer_here(self, request):
        return {"value": 3, "function": lambda: None}[request]

    def find(self, name, version):
        raise UnavailableError("the server is starting")

    def drop(self, model, id, why, owner):
        raise AssertionError


def test_a_call_whose_answer_cannot_be_sent_fails_and_a_line_that_comes_too_early_is_lost(tmp_path):
    async def run():
        pair = [Peers(FakeService(), number, 2, str(tmp_path)) for number in range(2)]
        await asyncio.wait_for(asyncio.gather(*(peers.start() for peers in pair)), 20)
        one, other = pair[0], pair[1].number
        link = one._peers[other].link
        with pytest.raises(Exception, match="pickle|local object"):  # another one in each version of Python
            await asyncio.wait_for(one.call(other, "infer", "function"), 20)
        one.tell(other, "drop", "a model", "1", "id", "why", (0, 1))
        assert await asyncio.wait_for(one.call(other, "infer", "value"), 20) == 3
        assert one._peers[other].link is link  # the same connection
        for peers in pair:
            peers.stop()
        await asyncio.sleep(0.1)

    asyncio.run(run())
