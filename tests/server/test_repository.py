"""Files and folders of models, and their settings."""

import asyncio
import shutil

import pytest

from rnnfast.errors import InputError, InputTypeError, ModelError
from rnnfast.server.faults import NotFoundError
from rnnfast.server.repository import Repository
from rnnfast.server.settings import ModelSettings, Settings
from tests.paths import MODELS


@pytest.fixture
def folder(tmp_path):
    for version in ("1", "2", "10", "03", "notes"):
        (tmp_path / "noise" / version).mkdir(parents=True)
        shutil.copy(MODELS / "denoiser.onnx", tmp_path / "noise" / version / "model.onnx")
    (tmp_path / "noise" / "11").mkdir()  # still being copied
    (tmp_path / "docs").mkdir()
    (tmp_path / "README").write_text("none")
    return tmp_path


def repository(*sources, **defaults):
    return Repository([str(source) for source in sources], ModelSettings(**defaults))


def test_versions_of_a_folder_are_numbers_and_the_newest_is_last(folder):
    found = repository(folder, MODELS / "tagger.onnx")
    assert found.names() == ["noise", "tagger"]
    assert list(found.entry("noise").versions) == ["1", "2", "10"]
    assert found.entry("tagger").versions == {"1": str(MODELS / "tagger.onnx")}


@pytest.mark.parametrize("count, expected", [(1, ["10"]), (2, ["2", "10"]), (9, ["1", "2", "10"])])
def test_as_many_of_the_newest_versions_are_served_as_the_settings_say(folder, count, expected):
    pytest.importorskip("orjson")
    from rnnfast.server.service import Service

    async def serve():
        service = Service(Settings((str(folder),), ModelSettings(versions=count)))
        try:
            await service.start()
            assert [model.version for model in service.models()] == expected
            assert service.model_metadata("noise")["versions"] == expected
            assert service.find("noise").version == "10" and service.find("noise", expected[0]).version == expected[0]
            with pytest.raises(NotFoundError, match="version 3 is not found"):
                service.find("noise", "3")
            config = service.find("noise").config()
            assert config["version_policy"] == {"latest": {"num_versions": count}}
        finally:
            await service.stop()

    asyncio.run(serve())


def test_a_config_sets_what_it_names(folder):
    (folder / "noise" / "config.json").write_text('{"max_sequences": 7, "idle": 2.5}')
    settings = repository(folder, max_batch=3).entry("noise").settings
    assert (settings.max_sequences, settings.idle, settings.max_batch) == (7, 2.5, 3)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ModelError, "config.json is no JSON"),
        ("[" * 100_000, ModelError, "config.json is no JSON"),
        ("[]", InputTypeError, "config.json is list, expected an object"),
        ('{"max_batches": 7}', InputError, "config.json: there is no setting 'max_batches', only weights"),
        ('{"max_batch": 0}', InputError, "config.json: .*max_batch is 0, expected an integer of at least 1"),
        ('{"max_batch": true}', InputTypeError, "max_batch is True"),
        ('{"weights": "int4"}', InputError, "weights is 'int4', expected int8, fp16 or bf16"),
        (" " * (2**20 + 1), ModelError, "more than 1048576 bytes"),
    ],
)
def test_a_wrong_config_names_file_and_setting(folder, text, error, message):
    (folder / "noise" / "config.json").write_text(text)
    with pytest.raises(error, match=message):
        repository(folder).entry("noise")


@pytest.mark.parametrize("name", ("nope", "", "..", "../noise", "noise/1", "docs"))
def test_other_names_are_not_found(folder, name):
    with pytest.raises(NotFoundError, match="Request for unknown model"):
        repository(folder).entry(name)


def test_sources_that_are_not_there_and_names_that_come_twice(folder, tmp_path):
    with pytest.raises(ModelError, match="no such file or folder"):
        repository(tmp_path / "nope").names()
    shutil.copytree(folder / "noise", folder / "tagger")
    with pytest.raises(InputError, match="model 'tagger' is there twice"):
        repository(folder, MODELS / "tagger.onnx").names()


def test_a_model_without_a_file_says_where_it_should_be(folder):
    shutil.rmtree(folder / "noise")
    (folder / "noise" / "1").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"there is no .*VERSION/model.onnx"):
        repository(folder).entry("noise")
