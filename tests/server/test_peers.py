"""Processes of a server that speak with each other, here in one process and one event loop."""

import asyncio
import collections

import numpy as np
import pytest

pytest.importorskip("uvloop")
pytest.importorskip("orjson")
pytest.importorskip("prometheus_client")

from rnnfast.errors import Overloaded
from rnnfast.server.faults import UnavailableError, UnknownSequenceError
from rnnfast.server.peers import Peers, process_of
from rnnfast.server.requests import InferRequest
from rnnfast.server.service import Service
from rnnfast.server.settings import ModelSettings, Settings
from tests.server.running import DENOISER, alone, frames_of

COUNT = 3


def services(tmp_path, count=COUNT, **settings):
    """The Services of a server of several processes, which have not started."""
    given = Settings((DENOISER,), ModelSettings(max_sequences=20), processes=count, drain=0.0, **settings)
    made = [Service(given) for _ in range(count)]
    for number, service in enumerate(made):
        service.peers = Peers(service, number, count, str(tmp_path))
    return made


def request(id, frame, start=False):
    parameters = {"sequence_id": id, "sequence_start": start}
    return InferRequest("denoiser", "", "", {"bands": frame}, [], parameters)


async def ended(services):
    for service in services:
        service.begin_draining()
    for service in services:
        await service.finish(1)
        await service.stop()


def test_requests_reach_the_process_of_their_sequence_and_errors_come_back(tmp_path):
    ids = [*range(1, 10), *"abcdefghi"]

    async def play():
        made = services(tmp_path)
        await asyncio.gather(*(service.start() for service in made))
        assert all(service.ready for service in made)
        results = {id: [] for id in ids}
        for t in range(4):
            for i, id in enumerate(ids):
                response = await made[(i + t) % COUNT].infer(request(id, frames_of(id, 4)[t], t == 0))
                results[id].append(response.outputs["gains"].reshape(-1))
        for id in ids:
            assert np.array_equal(results[id], alone(frames_of(id, 4)))
        for number, service in enumerate(made):
            assert service.live_sequences() == sum(process_of(id, COUNT) == number for id in ids) > 0
            with pytest.raises(UnknownSequenceError, match="must specify the START flag"):
                await service.infer(request("unknown", frames_of("a", 1)[0]))
            counts = (await service.statistics_of_all())["model_stats"][0]["inference_stats"]
            assert (counts["success"]["count"], counts["fail"]["count"]) == (4 * len(ids), number + 1)
        with pytest.raises(Overloaded, match="all 20 sequences are live"):
            for i in range(COUNT * 20 + 1):
                await made[0].infer(request(f"more {i}", frames_of("a", 1)[0], True))
        await ended(made)

    asyncio.run(play())


def test_the_others_know_when_a_process_is_gone_and_when_it_is_back(tmp_path):
    ids = [id for id in range(1, 20) if process_of(id, 2) == 1]

    async def play():
        first, second = services(tmp_path, 2)
        await asyncio.gather(first.start(), second.start())
        await first.infer(request(ids[0], frames_of("a", 1)[0], True))
        second.begin_draining()
        await second.stop()
        while first.ready or first.peers._peers[1].link is not None:
            await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match="process 1 of the server is not there"):
            await first.infer(request(ids[0], frames_of("a", 1)[0]))
        again = services(tmp_path, 2)[1]
        await again.start()
        while not first.ready:
            await asyncio.sleep(0.01)
        with pytest.raises(UnknownSequenceError):
            await first.infer(request(ids[0], frames_of("a", 1)[0]))
        await ended([first, again])

    asyncio.run(play())


def test_a_sequence_ends_with_its_connection_while_a_request_of_it_runs_in_another_process(tmp_path):
    """The connection's process cancels the request and drops the sequence at once."""

    async def play():
        made = services(tmp_path, 2)
        await asyncio.gather(*(service.start() for service in made))
        id = next(n for n in range(1, 100) if process_of(n, 2) == 1)
        first = request(id, frames_of(id, 1)[0], True)
        first.owner = made[0].new_owner()
        await made[0].infer(first)
        model = made[1].find("denoiser")
        running = asyncio.Event()

        async def infer(_):
            model.sequences._turns[id] = collections.deque()
            running.set()
            try:
                await asyncio.Event().wait()
            finally:
                model.sequences._turn_ended(id)

        model.infer = infer

        async def call():
            try:
                await made[0].infer(request(id, frames_of(id, 1)[0]))
            finally:
                made[0].drop(made[0].find("denoiser"), id, "was dropped", first.owner)

        task = asyncio.create_task(call())
        await running.wait()
        task.cancel()
        while model.sequences._turns or made[1].live_sequences():
            await asyncio.sleep(0.01)
        await ended(made)

    asyncio.run(asyncio.wait_for(play(), 30))


def test_no_request_is_taken_before_the_states_are_with_their_processes(tmp_path):
    """One process takes up all states, and is slow: no other one says that their sequences are unknown."""
    ids, folder = [*range(1, 10)], tmp_path / "states"

    async def play():
        made = services(tmp_path, state_dir=str(folder))
        await asyncio.gather(*(service.start() for service in made))
        for id in ids:
            await made[0].infer(request(id, frames_of(id, 2)[0], True))
        await ended(made)
        assert len(list(folder.iterdir())) == COUNT
        made = services(tmp_path, state_dir=str(folder))
        restore = Service.restore

        async def slow(self, name, version, states, owner=None):
            await asyncio.sleep(0.2)
            await restore(self, name, version, states, owner)

        for service in made:
            service.restore = slow.__get__(service)
        starting = asyncio.gather(*(service.start() for service in made))
        results = {}
        while len(results) < len(ids):
            for number, service in enumerate(made):
                for id in ids:
                    if id % COUNT == number and id not in results:
                        try:
                            response = await service.infer(request(id, frames_of(id, 2)[1]))
                        except UnavailableError:
                            continue
                        results[id] = response.outputs["gains"].reshape(-1)
            await asyncio.sleep(0)
        await starting
        for id in ids:
            assert np.array_equal(results[id], alone(frames_of(id, 2))[1])
        await ended(made)

    asyncio.run(play())
