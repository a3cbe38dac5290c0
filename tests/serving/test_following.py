"""The alias is followed; whatever is wrong with the registry or a version, what answered goes on answering."""

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
from segray.serving import model_cache
from segray.serving.controller import StatusReport, VersionController
from segray.serving.model_cache import ModelCache
from segray.serving.model_version import LoadedModel
from segray.serving.replica import Replica, count_agreeing_pixels
from segray.serving.requests import ResponseOptions
from segray.serving.server import load_initial_version
from segray.tracking.package import package_digest
from segray.tracking.registry import DIGEST_TAG

from .conftest import MODEL, Served, Store, picture, served


async def mask(found, body):
    """The version that answers an image, and its mask."""
    answer = await found.replica.segment(body, ResponseOptions())
    return answer.version, decode_mask(answer.body)


def weights_of(store, number):
    """The stored weights of a version."""
    source = store.client.get_model_version(MODEL, number).run_id
    return next(store.artifacts.glob(f"{source}/**/{checkpoint.WEIGHTS}"))


async def problems(found):
    """What /readyz says."""
    told = await found.client.get("/readyz")
    return told.status_code, " ".join(told.json()["problems"])


async def compared(found, images):
    """What was counted once every image was compared, or left out."""

    def settled(state):
        names = ("segray_compared_images", "segray_uncompared_images")
        return sum(count for (name, _, _), count in state.counts.items() if name in names) == images

    return (await found.until(settled)).counts


def test_a_promotion_is_followed_and_a_rollback_answers_as_before(store):
    body = picture()

    async def run():
        async with served(store) as found:
            seen = [await mask(found, body)]
            for number in ("2", "1"):
                store.set("champion", number)
                await found.until(lambda state, number=number: state.serving == (number,))
                seen.append(await mask(found, body))
            return seen

    seen = asyncio.run(run())
    assert [number for number, _ in seen] == ["1", "2", "1"]
    for number, one in seen:
        assert np.array_equal(one, store.mask(number, body))
    assert not np.array_equal(seen[0][1], seen[1][1])


def spoilt(store, how):
    """A version that cannot be used."""
    number = store.add(3)
    file = weights_of(store, number)
    if how == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    elif how == "gone":
        shutil.rmtree(file.parent)
    elif how == "of other bytes":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif how == "of another variant":
        settings = file.with_name("config.json")
        settings.write_text(settings.read_text().replace('"variant": "b0"', '"variant": "b1"'))
        store.client.set_model_version_tag(MODEL, number, DIGEST_TAG, package_digest(file.parent))
    return number


@pytest.mark.parametrize("how", ["cut off", "gone", "of other bytes", "of another variant"])
def test_a_version_that_cannot_be_loaded_is_told_and_the_old_one_goes_on(store, how):
    number = spoilt(store, how)

    async def run():
        async with served(store) as found:
            store.set("champion", number)
            await found.until(lambda state: any(f"version {number}" in one for one in state.problems))
            told, seen = await problems(found), await mask(found, picture())
            store.set("champion", "1")
            await found.until(lambda state: state.wanted.champion == "1" and not state.problems)
            return told, seen

    told, (answered, one) = asyncio.run(run())
    assert told[0] == 200
    assert f"version {number}" in told[1]
    assert answered == "1"
    assert np.array_equal(one, store.mask("1", picture()))


def test_a_registry_that_goes_away_is_told_and_serving_goes_on_even_of_a_new_watcher(store):
    database = store.place / "mlflow.db"

    async def run():
        async with served(store) as found:
            database.rename(store.place / "away")
            await found.until(lambda state: state.problems)
            told, seen = await problems(found), await mask(found, picture())
        async with served(store) as anew:
            again = await mask(anew, picture())
            assert (await problems(anew))[1]
            (store.place / "away").rename(database)
            await anew.until(lambda state: not state.problems)
        return told, seen, again

    told, seen, again = asyncio.run(run())
    assert told[0] == 200
    assert "mlflow.db" in told[1]
    assert seen[0] == again[0] == "1"
    assert np.array_equal(seen[1], again[1])


def test_an_alias_that_is_taken_away_is_told_and_serving_goes_on(store):
    async def run():
        async with served(store) as found:
            store.client.delete_registered_model_alias(MODEL, "champion")
            await found.until(lambda state: any("champion" in one for one in state.problems))
            return await mask(found, picture())

    assert asyncio.run(run())[0] == "1"


def test_a_replica_that_cannot_load_the_champion_takes_the_last_that_was_good(store):
    number = spoilt(store, "of another variant")

    async def run():
        async with served(store) as found:
            store.set("champion", number)
            await found.until(lambda state: any(f"version {number}" in one for one in state.problems))
            late = Replica(found.settings, "cpu", found.watcher, "r2")
            await late.start()
            return (await late.segment(picture(), ResponseOptions())).version

    assert asyncio.run(run()) == "1"


def test_without_any_good_version_a_replica_does_not_start(store):
    number = spoilt(store, "of another variant")
    store.set("champion", number)

    async def run():
        async with served(store):
            pass

    with pytest.raises(ServingError, match=f"version {number}"):
        asyncio.run(run())


def test_a_watcher_does_not_start_without_a_version(store):
    async def run():
        await VersionController(
            ServeConfig(alias="staging"), ModelCache(MODEL, store.uri, store.place / "served")
        ).start()

    with pytest.raises(SegrayError, match="staging"):
        asyncio.run(run())


def test_a_canary_answers_its_share_and_the_champion_is_compared(store):
    async def run():
        async with served(store, canary=0.5) as found:
            await found.until(lambda state: state.wanted.challenger == "2")
            seen = [await mask(found, picture()) for _ in range(40)]
            return seen, await compared(found, sum(number == "2" for number, _ in seen))

    seen, counts = asyncio.run(run())
    by_challenger = sum(number == "2" for number, _ in seen)
    assert 5 <= by_challenger <= 35  # of 40 draws at one half: beyond is once in a million
    for number, one in seen:
        assert np.array_equal(one, store.mask(number, picture()))
    images = counts["segray_compared_images", ("1", "2"), ""]
    same = int((store.mask("1", picture()) == store.mask("2", picture())).sum())
    assert counts["segray_agreed_pixels", ("1", "2"), ""] == images * same
    assert counts["segray_compared_pixels", ("1", "2"), ""] == images * 48 * 80


def test_a_shadow_is_compared_and_never_answers(store):
    async def run():
        async with served(store, shadow=1.0) as found:
            await found.until(lambda state: state.wanted.challenger == "2")
            seen = []
            for _ in range(10):
                seen.append((await mask(found, picture()))[0])
                await asyncio.sleep(0.1)
            return seen, await compared(found, 10)

    seen, counts = asyncio.run(run())
    assert set(seen) == {"1"}
    assert counts["segray_compared_images", ("1", "2"), ""] > 0


def test_without_canary_or_shadow_the_challenger_is_not_even_loaded(store):
    async def run():
        async with served(store) as found:
            return await found.until(lambda state: state.serving)

    state = asyncio.run(run())
    assert state.wanted.challenger is None
    assert set(state.described) == {"1"}


def test_versions_agree_by_the_names_of_their_classes():
    ours, theirs = Classes.from_names(["road", "car", "sky"]), Classes.from_names(["sky", "road", "tree"])
    found = count_agreeing_pixels(np.array([[0, 1, 2, 2]]), ours, np.array([[1, 0, 0, 2]]), theirs)
    assert found == 2  # road is road, sky is sky; a tree is no class of ours


def test_a_version_is_fetched_again_if_its_number_means_another_one(tmp_path, empty_store):
    made = Store(tmp_path / "anew", empty_store)
    made.add(0)
    shelf = ModelCache(MODEL, made.uri, tmp_path / "served")
    first = shelf.get("1")
    made.client.delete_registered_model(MODEL)
    assert made.add(5) == "1"
    assert first.files[checkpoint.WEIGHTS] != shelf.get("1").files[checkpoint.WEIGHTS]


def test_only_what_is_needed_is_kept(store):
    async def run():
        async with served(store) as found:
            third = store.add(7)
            for number in ("2", third):
                store.set("champion", number)
                await found.until(lambda state, number=number: state.serving == (number,))
            return third

    third = asyncio.run(run())
    kept = {file.name for folder in (store.place / "served").iterdir() for file in folder.iterdir()}
    assert kept == {"2", third, "aliases.json"}


@pytest.mark.parametrize(
    ("alias", "model", "said"),
    [("nobody", MODEL, "champion is 1"), ("champion", "nothing", "nothing"), ("champion", "nothing", MODEL)],
)
def test_what_is_not_there_is_refused_with_what_is(store, alias, model, said):
    with pytest.raises(RegistryError, match=said):
        load_initial_version(model, store.uri, ServeConfig(alias=alias), store.place / "served")


def test_a_registry_that_is_away_at_the_start_is_asked_a_few_times(store):
    with pytest.raises(RegistryError, match="127.0.0.1:9 does not answer .* tried 4 times"):
        load_initial_version(MODEL, "http://127.0.0.1:9", ServeConfig(), store.place / "served")


def test_a_version_without_files_is_refused_before_anything_starts(store):
    number = spoilt(store, "gone")
    store.set("champion", number)
    with pytest.raises(RegistryError, match=f"{MODEL}/{number} cannot be fetched"):
        load_initial_version(MODEL, store.uri, ServeConfig(), store.place / "served")


def test_what_somebody_counted_who_is_gone_still_counts(store, monkeypatch):
    key = ("segray_retries", (), "")

    async def run():
        async with served(store) as found:
            await found.until(lambda state: state.serving == ("1",))
            await found.watcher.sync(StatusReport("gone", {key: 3}, serving="1"))
            assert (await found.watcher.state()).serving == ("1", "1")
            monkeypatch.setattr("segray.serving.controller.CLIENT_TIMEOUT_S", -1.0)
            await found.watcher.state()
            monkeypatch.setattr("segray.serving.controller.CLIENT_TIMEOUT_S", 15.0)
            await found.watcher.sync(StatusReport("new", {key: 4}))
            return await found.watcher.state()

    assert asyncio.run(run()).counts[key] == 7


def test_large_images_share_no_forward_pass(store, monkeypatch):
    monkeypatch.setattr("segray.serving.model_version.BATCH_PIXELS", 48 * 80 * 3)

    async def run():
        async with served(store, batch=8) as found:
            return [found.replica._loaded["1"].max_batch_size(size) for size in ((48, 80), (96, 160), (8, 8))]

    assert asyncio.run(run()) == [3, 1, 8]


def test_requests_are_answered_while_a_version_is_loaded(store):
    """Of every answer the version is named truly, before, while and after the change."""

    async def run():
        async with served(store) as found:
            seen, bodies = [], [picture(seed=seed) for seed in range(3)]

            async def ask():
                while len({number for number, _, _ in seen}) < 2:
                    for body in bodies:
                        seen.append((*await mask(found, body), body))

            tasks = [asyncio.create_task(ask()) for _ in range(3)]
            await asyncio.sleep(0.2)
            store.set("champion", "2")
            await asyncio.wait_for(asyncio.gather(*tasks), 20)
            return seen

    for number, one, body in asyncio.run(run()):
        assert (one == store.mask(number, body)).mean() >= 1 - 1e-5


def test_a_forward_pass_that_hangs_is_bad_health(store, monkeypatch):
    async def run():
        found = Served(store, ServeConfig())
        await found.ready()
        found.replica.check_health()
        monkeypatch.setattr("segray.serving.replica.FORWARD_TIMEOUT_S", 0.0)
        found.replica.check_health()
        found.replica._batcher.batch_started_at = 0.0
        with pytest.raises(ServingError, match="forward pass"):
            found.replica.check_health()

    asyncio.run(run())


def test_who_was_only_slow_is_not_counted_twice(store, monkeypatch):
    key = ("segray_retries", (), "")

    async def run():
        async with served(store) as found:
            await found.watcher.sync(StatusReport("slow", {key: 3}))
            monkeypatch.setattr("segray.serving.controller.CLIENT_TIMEOUT_S", -1.0)
            await found.watcher.state()
            monkeypatch.setattr("segray.serving.controller.CLIENT_TIMEOUT_S", 15.0)
            await found.watcher.sync(StatusReport("slow", {key: 5}))
            return await found.watcher.state()

    assert asyncio.run(run()).counts[key] == 5


def test_a_replica_checks_in_while_it_loads(store, monkeypatch):
    async def run():
        async with served(store) as found:
            await found.until(lambda state: state.serving == ("1",))
            go, load = threading.Event(), LoadedModel.__init__
            monkeypatch.setattr(LoadedModel, "__init__", lambda *given: (go.wait(10), load(*given))[1])
            store.set("champion", "2")
            await found.until(lambda state: state.wanted.champion == "2")
            heard = [report for _, report in found.watcher._reports.values() if report.serving]
            await asyncio.sleep(1.5)
            again = [report for _, report in found.watcher._reports.values() if report.serving]
            go.set()
            await found.until(lambda state: state.serving == ("2",))
            return heard[0], again[0]

    heard, again = asyncio.run(run())
    assert heard is not again
    assert again.serving == "1"


def test_tags_alone_fetch_nothing_and_several_may_ask_at_once(store, monkeypatch):
    shelf = ModelCache(MODEL, store.uri, store.place / "served")
    shelf.get("1")
    store.client.set_model_version_tag(MODEL, "1", "note", str(time.time()))
    with ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(model_cache, "download_checkpoint", lambda *_: pytest.fail("fetched again"))
        found = list(pool.map(shelf.get, ["1"] * 4))
    assert all(one.files == found[0].files for one in found)
    assert "note" in found[0].tags


def test_a_file_that_was_attached_to_a_version_travels_with_it(store):
    number = store.add(5)
    weights_of(store, number).with_name("model.onnx").write_bytes(b"onnx")
    assert ModelCache(MODEL, store.uri, store.place / "served").get(number).files["model.onnx"] == b"onnx"


@pytest.mark.parametrize("part", [checkpoint.CONFIG, checkpoint.WEIGHTS])
def test_a_kept_version_that_lost_a_file_is_fetched_again(store, part):
    shelf = ModelCache(MODEL, store.uri, store.place / "served")
    first = shelf.get("1")
    next((store.place / "served").rglob(part)).unlink()
    assert shelf.get("1").files == first.files


def test_a_watcher_that_meets_an_unknown_error_tells_it_and_goes_on(store, monkeypatch):
    async def run():
        async with served(store) as found:
            aliases = found.watcher._shelf.aliases
            monkeypatch.setattr(found.watcher._shelf, "aliases", lambda: 1 / 0)
            await found.until(lambda state: any("ZeroDivisionError" in one for one in state.problems))
            monkeypatch.setattr(found.watcher._shelf, "aliases", aliases)
            store.set("champion", "2")
            return await found.until(lambda state: state.serving == ("2",) and not state.problems)

    assert asyncio.run(run()).version == "2"


def test_a_new_watcher_learns_the_good_version_from_who_serves_it_and_keeps_it(store):
    number = spoilt(store, "of another variant")

    async def run():
        async with served(store) as found:
            store.set("champion", number)
            await found.until(lambda state: any(f"version {number}" in one for one in state.problems))
            anew = VersionController(found.settings, ModelCache(MODEL, store.uri, store.place / "served"))
            await anew.start()
            await anew.sync(StatusReport("r1", {}, serving="1"))
            return (await anew.state()).wanted.fallback, (await anew.version("1")).number

    assert asyncio.run(run()) == ("1", "1")


def test_a_challenger_that_fails_over_an_image_leaves_it_to_the_champion(store, monkeypatch):
    async def run():
        async with served(store, canary=1.0) as found:
            await found.until(lambda state: state.wanted.challenger == "2" and "2" in state.described)
            challenger = found.replica._loaded["2"]
            monkeypatch.setattr(challenger, "predict", lambda *_: 1 / 0)
            seen = await mask(found, picture())
            return seen, await found.until(lambda state: any("fails over images" in one for one in state.problems))

    (number, one), _ = asyncio.run(run())
    assert number == "1"
    assert np.array_equal(one, store.mask("1", picture()))


def test_a_canary_of_other_classes_is_told_and_answers_nobody(store, monkeypatch):
    async def run():
        async with served(store, canary=1.0) as found:
            await found.until(lambda state: state.wanted.challenger == "2" and "2" in state.described)
            found.replica._loaded["2"].classes = Classes.from_names([f"c{number}" for number in range(8)])
            await found.until(lambda state: any("its classes are not" in one for one in state.problems))
            return await mask(found, picture())

    assert asyncio.run(run())[0] == "1"
