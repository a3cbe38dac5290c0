"""The server follows the alias, and continues to serve when the registry or a version fails."""

import asyncio
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segray.config import ServeConfig
from segray.core.classes import Classes
from segray.core.errors import RegistryError, SegrayError, ServingError
from segray.data.images import decode_mask
from segray.models import checkpoint
from segray.serving import controller, model_cache
from segray.serving.controller import StatusReport, VersionController
from segray.serving.model_cache import ModelCache
from segray.serving.model_version import LoadedModel
from segray.serving.replica import Replica, count_agreeing_pixels
from segray.serving.requests import ResponseOptions
from segray.serving.server import load_initial_version
from segray.tracking.integrity import integrity_tags

from .conftest import MODEL, LocalServing, Store, picture, served


async def mask(serving, body):
    """The version that answers a request, and its mask."""
    response = await serving.replica.segment(body, ResponseOptions())
    return response.version, decode_mask(response.body)


def weights_file(store, number):
    """The stored weights of a version."""
    source = store.client.get_model_version(MODEL, number).run_id
    return next(store.artifacts.glob(f"{source}/**/{checkpoint.WEIGHTS}"))


async def readiness(serving):
    """The status of /readyz, and its problems as one text."""
    response = await serving.client.get("/readyz")
    return response.status_code, " ".join(response.json()["problems"])


async def counts_after_comparison(serving, images):
    """The counters once every image is compared or dropped."""

    def is_complete(state):
        names = ("segray_compared_images", "segray_uncompared_images")
        return sum(count for (name, _, _), count in state.counts.items() if name in names) == images

    return (await serving.until(is_complete)).counts


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


def damaged_version(store, damage):
    """The number of a version that cannot be served."""
    number = store.add(3)
    file = weights_file(store, number)
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "gone":
        shutil.rmtree(file.parent)
    elif damage == "of other bytes":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "of another variant":
        settings = file.with_name("config.json")
        settings.write_text(settings.read_text().replace('"variant": "b0"', '"variant": "b1"'))
        for key, value in integrity_tags(file.parents[2]).items():
            store.client.set_model_version_tag(MODEL, number, key, value)
    return number


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


def test_a_replica_that_cannot_load_the_champion_uses_the_fallback(store):
    number = damaged_version(store, "of another variant")

    async def run():
        async with served(store) as serving:
            store.set("champion", number)
            await serving.until(lambda state: any(f"version {number}" in problem for problem in state.problems))
            late = Replica(serving.settings, "cpu", serving.controller, "r2")
            await late.start()
            return (await late.segment(picture(), ResponseOptions())).version

    assert asyncio.run(run()) == "1"


def test_a_replica_does_not_start_without_a_valid_version(store):
    number = damaged_version(store, "of another variant")
    store.set("champion", number)

    async def run():
        async with served(store):
            pass

    with pytest.raises(ServingError, match=f"version {number}"):
        asyncio.run(run())


def test_a_controller_does_not_start_without_a_version(store):
    async def run():
        await VersionController(
            ServeConfig(alias="staging"), ModelCache(MODEL, store.uri, store.folder / "served")
        ).start()

    with pytest.raises(SegrayError, match="staging"):
        asyncio.run(run())


def test_a_canary_answers_its_fraction_and_is_compared_with_the_champion(store):
    async def run():
        async with served(store, canary=0.5) as serving:
            await serving.until(lambda state: state.target.challenger == "2")
            answers = [await mask(serving, picture()) for _ in range(40)]
            return answers, await counts_after_comparison(serving, sum(number == "2" for number, _ in answers))

    answers, counts = asyncio.run(run())
    by_challenger = sum(number == "2" for number, _ in answers)
    assert 5 <= by_challenger <= 35  # of 40 draws at one half: beyond is once in a million
    for number, result in answers:
        assert np.array_equal(result, store.mask(number, picture()))
    images = counts["segray_compared_images", ("1", "2"), ""]
    same = int((store.mask("1", picture()) == store.mask("2", picture())).sum())
    assert counts["segray_agreed_pixels", ("1", "2"), ""] == images * same
    assert counts["segray_compared_pixels", ("1", "2"), ""] == images * 48 * 80


def test_a_shadow_is_compared_and_never_answers(store):
    async def run():
        async with served(store, shadow=1.0) as serving:
            await serving.until(lambda state: state.target.challenger == "2")
            answers = []
            for _ in range(10):
                answers.append((await mask(serving, picture()))[0])
                await asyncio.sleep(0.1)
            return answers, await counts_after_comparison(serving, 10)

    answers, counts = asyncio.run(run())
    assert set(answers) == {"1"}
    assert counts["segray_compared_images", ("1", "2"), ""] > 0


def test_without_canary_or_shadow_the_challenger_is_not_loaded(store):
    async def run():
        async with served(store) as serving:
            return await serving.until(lambda state: state.serving)

    state = asyncio.run(run())
    assert state.target.challenger is None
    assert set(state.models) == {"1"}


def test_agreement_is_by_class_name():
    ours, theirs = Classes.from_names(["road", "car", "sky"]), Classes.from_names(["sky", "road", "tree"])
    agreeing = count_agreeing_pixels(np.array([[0, 1, 2, 2]]), ours, np.array([[1, 0, 0, 2]]), theirs)
    assert agreeing == 2  # road is road, sky is sky; a tree is no class of ours


def test_a_recreated_version_number_is_fetched_again(tmp_path, empty_store):
    store = Store(tmp_path / "store", empty_store)
    store.add(0)
    cache = ModelCache(MODEL, store.uri, tmp_path / "served")
    first = cache.get("1")
    store.client.delete_registered_model(MODEL)
    assert store.add(5) == "1"
    assert first.files[checkpoint.WEIGHTS] != cache.get("1").files[checkpoint.WEIGHTS]


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


def test_the_counters_of_a_client_that_is_gone_are_included(store, monkeypatch):
    key = ("segray_retries", (), "")

    async def run():
        async with served(store) as serving:
            await serving.until(lambda state: state.serving == ("1",))
            await serving.controller.sync(StatusReport("gone", {key: 3}, serving="1"))
            assert (await serving.controller.state()).serving == ("1", "1")
            monkeypatch.setattr("segray.serving.controller.CLIENT_TIMEOUT_S", -1.0)
            await serving.controller.state()
            monkeypatch.setattr("segray.serving.controller.CLIENT_TIMEOUT_S", 15.0)
            await serving.controller.sync(StatusReport("new", {key: 4}))
            return await serving.controller.state()

    assert asyncio.run(run()).counts[key] == 7


def test_large_images_share_no_forward_pass(store, monkeypatch):
    monkeypatch.setattr("segray.serving.model_version.BATCH_PIXELS", 48 * 80 * 3)

    async def run():
        async with served(store, max_batch_size=8) as serving:
            return [serving.replica._loaded["1"].max_batch_size(size) for size in ((48, 80), (96, 160), (8, 8))]

    assert asyncio.run(run()) == [3, 1, 8]


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


def test_requests_are_answered_while_a_version_is_loaded(store):
    """Of every answer the version is named truly, before, while and after the change."""

    async def run():
        async with served(store) as serving:
            answers, bodies = [], [picture(seed=seed) for seed in range(3)]

            async def send():
                while len({number for number, _, _ in answers}) < 2:
                    for body in bodies:
                        answers.append((*await mask(serving, body), body))

            tasks = [asyncio.create_task(send()) for _ in range(3)]
            await asyncio.sleep(0.2)
            store.set("champion", "2")
            await asyncio.wait_for(asyncio.gather(*tasks), 20)
            return answers

    for number, result, body in asyncio.run(run()):
        assert (result == store.mask(number, body)).mean() >= 1 - 1e-5


def test_a_hanging_forward_pass_fails_the_health_check(store, monkeypatch):
    async def run():
        serving = LocalServing(store, ServeConfig())
        await serving.ready()
        serving.replica.check_health()
        monkeypatch.setattr("segray.serving.replica.FORWARD_TIMEOUT_S", 0.0)
        serving.replica.check_health()
        serving.replica._batcher.batch_started_at = 0.0
        with pytest.raises(ServingError, match="forward pass"):
            serving.replica.check_health()

    asyncio.run(run())


def test_the_reports_of_clients_that_are_gone_for_long_become_one_sum(store, monkeypatch):
    key, clock, num_summands = ("segray_retries", (), ""), [1000.0], []
    sum_counters = controller.sum_counters
    monkeypatch.setattr(controller, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        controller, "sum_counters", lambda parts: num_summands.append(len(parts)) or sum_counters(parts)
    )

    async def run():
        following = VersionController(ServeConfig(), ModelCache(MODEL, store.uri, store.folder / "served"))
        await following.start()
        for number in range(20):
            await following.sync(StatusReport(f"r{number}", {key: 1}))
            clock[0] += 3600
            state = await following.state()
        return state

    assert asyncio.run(run()).counts[key] == 20
    assert max(num_summands) < 5


def test_a_slow_client_is_not_counted_twice(store, monkeypatch):
    key = ("segray_retries", (), "")

    async def run():
        async with served(store) as serving:
            await serving.controller.sync(StatusReport("slow", {key: 3}))
            monkeypatch.setattr("segray.serving.controller.CLIENT_TIMEOUT_S", -1.0)
            await serving.controller.state()
            monkeypatch.setattr("segray.serving.controller.CLIENT_TIMEOUT_S", 15.0)
            await serving.controller.sync(StatusReport("slow", {key: 5}))
            return await serving.controller.state()

    assert asyncio.run(run()).counts[key] == 5


def test_a_replica_reports_while_it_loads(store, monkeypatch):
    async def run():
        async with served(store) as serving:
            await serving.until(lambda state: state.serving == ("1",))
            go, load = threading.Event(), LoadedModel.__init__
            monkeypatch.setattr(LoadedModel, "__init__", lambda *args: (go.wait(10), load(*args))[1])
            store.set("champion", "2")
            await serving.until(lambda state: state.target.champion == "2")
            heard = [report for _, report in serving.controller._reports.values() if report.serving]
            await asyncio.sleep(1.5)
            again = [report for _, report in serving.controller._reports.values() if report.serving]
            go.set()
            await serving.until(lambda state: state.serving == ("2",))
            return heard[0], again[0]

    heard, again = asyncio.run(run())
    assert heard is not again
    assert again.serving == "1"


def test_a_tag_does_not_cause_a_download_and_requests_may_be_concurrent(store, monkeypatch):
    cache = ModelCache(MODEL, store.uri, store.folder / "served")
    cache.get("1")
    store.client.set_model_version_tag(MODEL, "1", "note", str(time.time()))
    with ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(model_cache, "download_checkpoint", lambda *_: pytest.fail("fetched again"))
        versions = list(pool.map(cache.get, ["1"] * 4))
    assert all(version.files == versions[0].files for version in versions)
    assert "note" in versions[0].tags


def test_a_cached_version_does_not_wait_for_the_download_of_another(store, monkeypatch):
    cache = ModelCache(MODEL, store.uri, store.folder / "served")
    cache.get("1")
    started, proceed, download = threading.Event(), threading.Event(), model_cache.download_checkpoint

    def slow_download(*args):
        started.set()
        proceed.wait(20)
        return download(*args)

    monkeypatch.setattr(model_cache, "download_checkpoint", slow_download)
    with ThreadPoolExecutor(2) as pool:
        downloading = pool.submit(cache.get, "2")
        assert started.wait(10)
        try:
            assert pool.submit(cache.get, "1").result(timeout=5).number == "1"
            cache.evict_except({"1", "2"})  # spares the download in progress
        finally:
            proceed.set()
        assert downloading.result().number == "2"


def test_an_interrupted_download_is_evicted_with_its_version(store):
    cache = ModelCache(MODEL, store.uri, store.folder / "served")
    cache.get("1")
    (folder,) = (store.folder / "served").iterdir()
    (folder / ".2-interrupted" / "2").mkdir(parents=True)
    cache.evict_except({"1"})
    assert [file.name for file in folder.iterdir()] == ["1"]


def test_files_attached_to_a_version_are_included(store):
    number = store.add(5)
    weights_file(store, number).with_name("model.onnx").write_bytes(b"onnx")
    assert ModelCache(MODEL, store.uri, store.folder / "served").get(number).files["model.onnx"] == b"onnx"


@pytest.mark.parametrize("part", [checkpoint.CONFIG, checkpoint.WEIGHTS])
def test_an_incomplete_cached_version_is_fetched_again(store, part):
    cache = ModelCache(MODEL, store.uri, store.folder / "served")
    first = cache.get("1")
    next((store.folder / "served").rglob(part)).unlink()
    assert cache.get("1").files == first.files


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


def test_the_champion_answers_if_the_challenger_fails_on_an_image(store, monkeypatch):
    async def run():
        async with served(store, canary=1.0) as serving:
            await serving.until(lambda state: state.target.challenger == "2" and "2" in state.models)
            challenger = serving.replica._loaded["2"]
            monkeypatch.setattr(challenger, "predict", lambda *_: 1 / 0)
            answers = await mask(serving, picture())
            return answers, await serving.until(
                lambda state: any("fails on images" in problem for problem in state.problems)
            )

    (number, result), _ = asyncio.run(run())
    assert number == "1"
    assert np.array_equal(result, store.mask("1", picture()))


@pytest.mark.parametrize(("traffic", "failing"), [("shadow", "2"), ("canary", "1")])
def test_a_version_that_fails_in_a_comparison_is_a_problem(store, monkeypatch, traffic, failing):
    async def run():
        async with served(store, **{traffic: 1.0}) as serving:
            await serving.until(lambda state: "2" in state.models)
            monkeypatch.setattr(serving.replica._loaded[failing], "predict", lambda *_: 1 / 0)
            await mask(serving, picture())
            return await serving.until(lambda state: state.problems, 5)

    (problem,) = asyncio.run(run()).problems
    assert f"version {failing}: it fails on images: ZeroDivisionError" in problem


def test_a_canary_with_other_classes_is_a_problem_and_answers_no_request(store, monkeypatch):
    async def run():
        async with served(store, canary=1.0) as serving:
            await serving.until(lambda state: state.target.challenger == "2" and "2" in state.models)
            serving.replica._loaded["2"].classes = Classes.from_names([f"c{number}" for number in range(8)])
            await serving.until(lambda state: any("its classes differ" in problem for problem in state.problems))
            return await mask(serving, picture())

    assert asyncio.run(run())[0] == "1"
