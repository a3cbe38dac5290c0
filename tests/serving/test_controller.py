"""The controller follows the alias, and serving continues when the registry or a version fails."""

import asyncio
import threading

import numpy as np
import pytest

from segray.config import ServeConfig
from segray.core.errors import RegistryError, SegrayError
from segray.serving import model_cache
from segray.serving.controller import VersionController
from segray.serving.model_cache import ModelCache
from segray.serving.model_version import LoadedModel
from segray.serving.server import load_initial_version
from segray.serving.status import StatusReport

from .conftest import MODEL, damaged_version, mask, picture, served


async def readiness(serving):
    """The status of /readyz, and its problems as one text."""
    response = await serving.client.get("/readyz")
    return response.status_code, " ".join(response.json()["problems"])


def test_a_promotion_and_a_rollback_are_followed(store):
    body = picture()

    async def run():
        async with served(store) as serving:
            answers = [await mask(serving, body)]
            for number in ("2", "1"):
                store.set("champion", number)
                await serving.until(lambda state, number=number: state.serving == (number,))
                answers.append(await mask(serving, body))
            return answers

    answers = asyncio.run(run())
    assert [number for number, _ in answers] == ["1", "2", "1"]
    for number, result in answers:
        assert np.array_equal(result, store.mask(number, body))
    assert not np.array_equal(answers[0][1], answers[1][1])


@pytest.mark.parametrize("damage", ["cut off", "gone", "of other bytes", "of another variant"])
def test_a_version_that_cannot_be_loaded_is_a_problem_and_the_previous_one_serves(store, damage):
    number = damaged_version(store, damage)

    async def run():
        async with served(store) as serving:
            store.set("champion", number)
            await serving.until(lambda state: any(f"version {number}" in problem for problem in state.problems))
            ready, answer = await readiness(serving), await mask(serving, picture())
            store.set("champion", "1")
            await serving.until(lambda state: state.target.champion == "1" and not state.problems)
            return ready, answer

    ready, (version, result) = asyncio.run(run())
    assert ready[0] == 200
    assert f"version {number}" in ready[1]
    assert version == "1"
    assert np.array_equal(result, store.mask("1", picture()))


def test_serving_continues_without_the_registry_also_with_a_new_controller(store):
    database = store.folder / "mlflow.db"

    async def run():
        async with served(store) as serving:
            database.rename(store.folder / "away")
            await serving.until(lambda state: state.problems)
            ready, answer = await readiness(serving), await mask(serving, picture())
        async with served(store) as restarted:
            again = await mask(restarted, picture())
            assert (await readiness(restarted))[1]
            (store.folder / "away").rename(database)
            await restarted.until(lambda state: not state.problems)
        return ready, answer, again

    ready, answer, again = asyncio.run(run())
    assert ready[0] == 200
    assert "mlflow.db" in ready[1]
    assert answer[0] == again[0] == "1"
    assert np.array_equal(answer[1], again[1])


def test_a_deleted_alias_is_a_problem_and_serving_continues(store):
    async def run():
        async with served(store) as serving:
            store.client.delete_registered_model_alias(MODEL, "champion")
            await serving.until(lambda state: any("champion" in problem for problem in state.problems))
            return await mask(serving, picture())

    assert asyncio.run(run())[0] == "1"


def test_a_controller_does_not_start_without_a_version(store):
    async def run():
        await VersionController(
            ServeConfig(alias="staging"), ModelCache(MODEL, store.uri, store.folder / "served")
        ).start()

    with pytest.raises(SegrayError, match="staging"):
        asyncio.run(run())


def test_unused_versions_are_evicted(store):
    async def run():
        async with served(store) as serving:
            third = store.add(7)
            for number in ("2", third):
                store.set("champion", number)
                await serving.until(lambda state, number=number: state.serving == (number,))
            return third

    third = asyncio.run(run())
    kept = {file.name for folder in (store.folder / "served").iterdir() for file in folder.iterdir()}
    assert kept == {"2", third, "aliases.json"}


@pytest.mark.parametrize(
    ("alias", "model", "reason"),
    [("nobody", MODEL, "champion is 1"), ("champion", "nothing", "nothing"), ("champion", "nothing", MODEL)],
)
def test_a_missing_model_or_alias_is_refused_with_the_available_ones(store, alias, model, reason):
    with pytest.raises(RegistryError, match=reason):
        load_initial_version(model, store.uri, ServeConfig(alias=alias), store.folder / "served")


def test_an_unavailable_registry_is_retried_at_the_start(store):
    with pytest.raises(RegistryError, match="127.0.0.1:9 does not respond after 4 attempts"):
        load_initial_version(MODEL, "http://127.0.0.1:9", ServeConfig(), store.folder / "served")


def test_a_version_without_files_is_refused_at_the_start(store):
    number = damaged_version(store, "gone")
    store.set("champion", number)
    with pytest.raises(RegistryError, match=f"{MODEL}/{number} cannot be loaded"):
        load_initial_version(MODEL, store.uri, ServeConfig(), store.folder / "served")


@pytest.mark.parametrize("step", ["download", "load"])
def test_a_champion_is_followed_while_a_challenger_is_fetched_or_loads(store, monkeypatch, step):
    third = store.add(7)
    store.client.delete_registered_model_alias(MODEL, "challenger")
    started, proceed = threading.Event(), threading.Event()
    download, load = model_cache.download_checkpoint, LoadedModel.__init__

    def wait():
        started.set()
        proceed.wait(20)

    def slow_download(reference, *rest):
        if reference.endswith("/2") and step == "download":
            wait()
        return download(reference, *rest)

    def slow_load(loaded, version, *rest):
        if version.number == "2" and step == "load":
            wait()
        load(loaded, version, *rest)

    async def run():
        async with served(store, shadow=1.0) as serving:
            monkeypatch.setattr(model_cache, "download_checkpoint", slow_download)
            monkeypatch.setattr(LoadedModel, "__init__", slow_load)
            store.set("challenger", "2")
            assert await asyncio.to_thread(started.wait, 10)
            store.set("champion", third)
            try:
                await serving.until(lambda state: state.serving == (third,), 5)
            finally:
                proceed.set()
            await serving.until(lambda state: set(state.models) == {"2", third})

    asyncio.run(run())


@pytest.mark.parametrize("step", ["download", "load"])
def test_a_server_starts_while_its_challenger_is_fetched_or_loads(store, monkeypatch, step):
    proceed = threading.Event()
    download, load = model_cache.download_checkpoint, LoadedModel.__init__

    def slow_download(reference, *rest):
        if reference.endswith("/2") and step == "download":
            proceed.wait(20)
        return download(reference, *rest)

    def slow_load(loaded, version, *rest):
        if version.number == "2" and step == "load":
            proceed.wait(20)
        load(loaded, version, *rest)

    async def run():
        monkeypatch.setattr(model_cache, "download_checkpoint", slow_download)
        monkeypatch.setattr(LoadedModel, "__init__", slow_load)
        try:
            async with asyncio.timeout(10), served(store, shadow=1.0) as serving:
                answer = await mask(serving, picture())
                proceed.set()
                state = await serving.until(lambda state: set(state.models) == {"1", "2"})
                return answer[0], state.target.challenger
        finally:
            proceed.set()

    assert asyncio.run(run()) == ("1", "2")


def test_an_unexpected_error_of_the_controller_is_a_problem_until_the_next_poll(store, monkeypatch):
    async def run():
        async with served(store) as serving:
            aliases = serving.controller._cache.aliases
            monkeypatch.setattr(serving.controller._cache, "aliases", lambda: 1 / 0)
            await serving.until(lambda state: any("ZeroDivisionError" in problem for problem in state.problems))
            monkeypatch.setattr(serving.controller._cache, "aliases", aliases)
            store.set("champion", "2")
            return await serving.until(lambda state: state.serving == ("2",) and not state.problems)

    assert asyncio.run(run()).version == "2"


def test_a_new_controller_learns_the_fallback_from_a_replica(store):
    number = damaged_version(store, "of another variant")

    async def run():
        async with served(store) as serving:
            store.set("champion", number)
            await serving.until(lambda state: any(f"version {number}" in problem for problem in state.problems))
            restarted = VersionController(serving.settings, ModelCache(MODEL, store.uri, store.folder / "served"))
            await restarted.start()
            await restarted.sync(StatusReport("r1", {}, serving="1"))
            return (await restarted.state()).target.fallback, (await restarted.version("1")).number

    assert asyncio.run(run()) == ("1", "1")
