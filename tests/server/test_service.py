"""The life of a Service: changes whose client goes away, and the end of one of several models."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("orjson")
from rnnfast.errors import LimitError
from rnnfast.server.requests import InferRequest
from rnnfast.server.service import Service
from rnnfast.server.settings import ModelSettings, Settings
from tests.paths import MODELS


def serve(test, folder, *names):
    """Run `test(service, warnings)` with a started Service of models, which keeps states in a folder."""

    async def run():
        warnings = []
        paths = tuple(str(MODELS / f"{name}.onnx") for name in names)
        settings = Settings(paths, ModelSettings(), state_dir=str(folder), control=True)
        service = Service(settings, warnings.append)
        await service.start()
        try:
            await test(service, warnings)
        finally:
            await service.stop()

    asyncio.run(run())


def first(model, id):
    inputs = {"denoiser": ("bands", (1, 22)), "forecast": ("x", (1, 3, 1))}
    name, shape = inputs[model]
    parameters = {"sequence_id": id, "sequence_start": True}
    return InferRequest(model, "", "", {name: np.ones(shape, np.float32)}, [], parameters)


@pytest.mark.parametrize("change", ("load", "unload"))
def test_a_change_of_models_is_done_as_a_whole_though_its_client_goes_away(change, tmp_path):
    async def test(service, warnings):
        before = service.find("denoiser")
        await service.infer(first("denoiser", 1))
        task = asyncio.create_task(getattr(service, change)("denoiser"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.gather(*service._changes)
        assert before not in service.models() and len(before.sequences) == 0
        assert before.sequences.batchers[0]._worker._ended
        assert list(service._state_files) == service.models()
        assert len(service.models()) == (change == "load")

    serve(test, tmp_path, "denoiser")


def test_states_of_one_model_that_cannot_be_had_are_not_those_of_others(tmp_path):
    async def test(service, warnings):
        for model in "denoiser", "forecast":
            for id in "a", "b":
                await service.infer(first(model, id))

        def fails():
            raise LimitError("no memory")

        service.find("denoiser").sequences.states = fails
        await service.finish(1.0)
        assert len(warnings) == 2 and warnings[0].startswith("the states of 2 sequences of model 'denoiser' are lost")
        assert warnings[1].startswith("2 sequences of model 'forecast' wait in ")

    serve(test, tmp_path, "denoiser", "forecast")
