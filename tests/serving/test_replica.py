"""A replica loads versions next to the one that answers, and compares a challenger with the champion."""

import asyncio
import threading
import time

import numpy as np
import pytest

from segray.config import ServeConfig
from segray.core.classes import Classes
from segray.core.errors import DataError, ServingError
from segray.data.images import decode_mask
from segray.serving.comparison import count_agreeing_pixels
from segray.serving.image_header import ImageHeader, read_image_header
from segray.serving.model_cache import ModelCache
from segray.serving.model_version import LoadedModel
from segray.serving.pipeline import decode_as_announced
from segray.serving.replica import Replica
from segray.serving.requests import RequestError, ResponseOptions
from segray.serving.responses import encode_png
from segray.serving.speed import SAFETY, ModelSpeed, Speed, measure_seconds

from .conftest import MODEL, LocalServing, damaged_version, mask, picture, segment, served


async def counts_after_comparison(serving, images):
    """The counters once every image is compared or dropped."""

    def is_complete(state):
        names = ("segray_compared_images", "segray_uncompared_images")
        return sum(count for (name, _, _), count in state.counts.items() if name in names) == images

    return (await serving.until(is_complete)).counts


def test_a_replica_that_cannot_load_the_champion_uses_the_fallback(store):
    number = damaged_version(store, "of another variant")

    async def run():
        async with served(store) as serving:
            store.set("champion", number)
            await serving.until(lambda state: any(f"version {number}" in problem for problem in state.problems))
            late = Replica(serving.settings, "cpu", serving.controller, "r2")
            await late.start()
            return (await segment(late, picture())).version

    assert asyncio.run(run()) == "1"


def test_a_replica_does_not_start_without_a_valid_version(store):
    number = damaged_version(store, "of another variant")
    store.set("champion", number)

    async def run():
        async with served(store):
            pass

    with pytest.raises(ServingError, match=f"version {number}"):
        asyncio.run(run())


def test_a_canary_answers_its_fraction_and_is_compared_with_the_champion(store):
    async def run():
        async with served(store, canary=0.5) as serving:
            await serving.until(lambda state: "2" in state.models)
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
            await serving.until(lambda state: "2" in state.models)
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


def test_large_images_share_no_forward_pass(store, monkeypatch):
    monkeypatch.setattr("segray.serving.model_version.BATCH_PIXELS", 48 * 80 * 3)
    monkeypatch.setattr("segray.serving.model_version.MAX_BATCH_S", 1000.0)

    async def run():
        async with served(store, max_batch_size=8) as serving:
            return [serving.replica._loaded["1"].max_batch_size(size) for size in ((48, 80), (96, 160), (8, 8))]

    assert asyncio.run(run()) == [3, 1, 8]


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
        monkeypatch.setattr("segray.serving.pipeline.FORWARD_TIMEOUT_S", 0.0)
        serving.replica.check_health()
        serving.replica._pipeline.large.batcher.batch_started_at = 0.0
        with pytest.raises(ServingError, match="forward pass"):
            serving.replica.check_health()

    asyncio.run(run())


def test_a_replica_reports_while_it_loads(store, monkeypatch):
    async def run():
        async with served(store) as serving:
            await serving.until(lambda state: state.serving == ("1",))
            go, load = threading.Event(), LoadedModel.__init__
            monkeypatch.setattr(LoadedModel, "__init__", lambda *args: (go.wait(10), load(*args))[1])
            store.set("champion", "2")
            await serving.until(lambda state: state.target.champion == "2")
            heard = [report for _, report in serving.controller._reports._reports.values() if report.serving]
            await asyncio.sleep(1.5)
            again = [report for _, report in serving.controller._reports._reports.values() if report.serving]
            go.set()
            await serving.until(lambda state: state.serving == ("2",))
            return heard[0], again[0]

    heard, again = asyncio.run(run())
    assert heard is not again
    assert again.serving == "1"


def test_the_champion_answers_if_the_challenger_fails_on_an_image(store, monkeypatch):
    async def run():
        async with served(store, canary=1.0) as serving:
            await serving.until(lambda state: state.target.challenger == "2" and "2" in state.models)
            challenger = serving.replica._loaded["2"]
            monkeypatch.setattr(challenger, "predict", lambda *_: 1 / 0)
            answers = await mask(serving, picture())
            return answers, await serving.until(
                lambda state: any("failed images: 1, the last one with" in problem for problem in state.problems)
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
            for _ in range(2):
                await mask(serving, picture())
            return await serving.until(
                lambda state: any("failed images: 2" in problem for problem in state.problems), 5
            )

    state = asyncio.run(run())
    (problem,) = state.problems
    assert f"version {failing}: failed images: 2, the last one with ZeroDivisionError" in problem
    assert state.counts["segray_failed_images", (failing,), ""] == 2


def test_a_canary_with_other_classes_is_a_problem_and_answers_no_request(store, monkeypatch):
    async def run():
        async with served(store, canary=1.0) as serving:
            await serving.until(lambda state: state.target.challenger == "2" and "2" in state.models)
            serving.replica._loaded["2"].classes = Classes.from_names([f"c{number}" for number in range(8)])
            await serving.until(lambda state: any("its classes differ" in problem for problem in state.problems))
            return await mask(serving, picture())

    assert asyncio.run(run())[0] == "1"


def test_a_small_image_does_not_wait_for_a_large_one_and_an_abandoned_one_ends(store):
    """The large image is computed in steps for as long as its caller waits, and pauses for the small one."""

    async def run():
        async with served(store, request_timeout_s=3600.0) as serving:
            loaded, steps, small = serving.replica._champion, [], picture()
            predict = loaded.predict

            def endless(size, images, check):
                if size == (48, 80):
                    steps.append("small")
                    time.sleep(0.3)
                    return predict(size, images, check)
                while True:
                    check()
                    steps.append("large")
                    time.sleep(0.001)

            loaded.predict = endless
            large = asyncio.create_task(mask(serving, picture(800, 800)))
            while "large" not in steps:
                assert not large.done()
                await asyncio.sleep(0.01)
            number, _ = await asyncio.wait_for(mask(serving, small), 30)
            begun = steps.index("small")
            during = steps[begun : begun + 3]
            large.cancel()
            await asyncio.sleep(0.3)
            num_steps = len(steps)
            await asyncio.sleep(0.3)
            return number, during, len(steps) - num_steps, serving.replica._pipeline.large.queue._num_free

    number, during, more, num_free = asyncio.run(run())
    assert number == "1"
    assert during.count("large") <= 2  # the step that ran when the small image arrived, and one after it
    assert more == 0
    assert num_free == 2


def test_small_images_do_not_starve_a_large_one(store):
    async def run():
        async with served(store) as serving:
            serving.replica._pipeline.small.batcher.is_idle.clear()  # as if small images waited all the time
            response = await asyncio.wait_for(segment(serving.replica, picture(600, 640)), 120)
            assert (decode_mask(response.body) == store.mask("1", picture(600, 640))).mean() > 1 - 1e-4

    asyncio.run(run())


def test_shapes_that_wait_hold_no_slot_of_the_images(store):
    async def run():
        async with served(store, max_batch_size=1) as serving:
            pipeline, shapes = serving.replica._pipeline, ResponseOptions("json", frozenset({"polygons"}))
            async with pipeline._shape_queue.slot("greedy", 1.0):
                waiting = [asyncio.create_task(segment(serving.replica, picture(), shapes, "greedy")) for _ in range(4)]
                while pipeline._shape_queue.num_waiting < 4:
                    await asyncio.sleep(0.01)
                number, _ = await asyncio.wait_for(mask(serving, picture()), 30)
                honest = asyncio.create_task(segment(serving.replica, picture(), shapes, "honest"))
                while pipeline._shape_queue.num_waiting < 5:
                    await asyncio.sleep(0.01)
            await asyncio.wait([honest, waiting[-1]], return_when=asyncio.FIRST_COMPLETED)
            assert honest.done()
            assert not waiting[-1].done()
            await asyncio.gather(*waiting)
            return number

    assert asyncio.run(run()) == "1"


def test_the_speed_is_measured_again_when_no_request_is_computed(store, monkeypatch):
    monkeypatch.setattr("segray.serving.replica.SPEED_INTERVAL_S", 0.01)
    undisturbed = ModelSpeed(Speed(1e-9), Speed(2e-9), 1e-3, 1e-3)
    monkeypatch.setattr(LoadedModel, "measure_speed", lambda _: undisturbed)

    async def run():
        serving = LocalServing(store, ServeConfig())
        await serving.ready()
        loaded = serving.replica._champion
        loaded.set_speed(ModelSpeed(Speed(1e-3), Speed(1e-3), 5.0, 5.0))
        pipeline = serving.replica._pipeline
        async with pipeline.slot(loaded, ImageHeader("JPEG", 1, 1), "test", 0.0):
            await asyncio.sleep(0.2)
            assert loaded.estimate_seconds((1, 1)) == 5.0
        while loaded.estimate_seconds((1, 1)) == 5.0:
            await asyncio.sleep(0.01)
        assert loaded.max_image_pixels == ServeConfig().max_image_pixels

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("slide_above_pixels", [20_000, 10**6])
def test_a_computation_can_be_ended_between_layers(store, slide_above_pixels):
    calls = []

    class EndError(Exception):
        pass

    def check():
        calls.append(1)
        if len(calls) == 40:
            raise EndError

    loaded = LoadedModel(
        ModelCache(MODEL, store.uri, store.folder / "served").get("1"),
        ServeConfig(slide_above_pixels=slide_above_pixels),
        "cpu",
    )
    image = np.zeros((160, 224, 3), np.uint8)
    with pytest.raises(EndError):
        loaded.predict((160, 224), [image], check)
    assert len(calls) == 40
    assert loaded.predict((160, 224), [image])[0].shape == (160, 224)
    assert len(calls) == 40


def test_the_largest_image_is_one_that_the_replica_segments_in_time(store):
    """Truth: the duration of the forward pass of an image of that size."""
    version = ModelCache(MODEL, store.uri, store.folder / "served").get("1")
    fast = LoadedModel(version, ServeConfig(request_timeout_s=3600.0), "cpu")
    assert fast.max_image_pixels == ServeConfig().max_image_pixels

    def shortest_s(side):
        image, durations = np.zeros((side, side, 3), np.uint8), []
        for _ in range(3):
            started_at = time.perf_counter()
            fast.predict((side, side), [image])
            durations.append(time.perf_counter() - started_at)
        return min(durations)

    timeout_s = 8 * SAFETY * shortest_s(256)
    slow = LoadedModel(version, ServeConfig(request_timeout_s=timeout_s), "cpu")
    assert 0 < slow.max_image_pixels < fast.max_image_pixels
    assert shortest_s(int(slow.max_image_pixels**0.5)) < timeout_s
    assert slow.info()["max_image_pixels"] == slow.max_image_pixels


@pytest.mark.parametrize("header", [ImageHeader("JPEG", 1, 1), ImageHeader("JPEG", 40, 96)])
def test_an_image_of_another_size_than_its_header_states_is_refused(header):
    body = picture()
    assert decode_as_announced(body, read_image_header(body)).shape == (48, 80, 3)
    with pytest.raises(DataError, match="the image has"):
        decode_as_announced(body, header)


def test_the_cost_of_a_request_is_its_computation(store):
    """Truth: the duration of the complete computation, on a machine that may be busy. Pixels are wrong by 1000."""
    version = ModelCache(MODEL, store.uri, store.folder / "served").get("1")
    loaded = LoadedModel(version, ServeConfig(), "cpu")

    def seconds(size):
        body = picture(*size)

        def serve():
            image = decode_as_announced(body, read_image_header(body))
            encode_png(image, loaded.predict(size, [image])[0], loaded.classes, ResponseOptions())

        return min(measure_seconds(serve) for _ in range(3))

    durations = {size: seconds(size) for size in ((1, 1), (1, 64), (64, 64), (128, 128), (16, 512), (256, 256))}
    for size, duration in durations.items():
        for other, other_duration in durations.items():
            charged = loaded.estimate_seconds(size) / loaded.estimate_seconds(other)
            assert 1 / 10 < charged / (duration / other_duration) < 10, (size, other)


def test_the_replica_charges_the_estimated_seconds(store):
    async def run():
        async with served(store) as serving:
            replica, costs = serving.replica, []
            slot = replica._pipeline.small.queue.slot

            def record(client, cost):
                costs.append(cost)
                return slot(client, cost)

            replica._pipeline.small.queue.slot = record
            for size in ((1, 1), (48, 80)):
                await segment(replica, picture(*size))
            return costs, [replica._champion.estimate_seconds(size) for size in ((1, 1), (48, 80))]

    costs, expected = asyncio.run(run())
    assert costs == expected


def test_an_image_whose_model_input_takes_too_long_is_refused_before_it_is_decoded(store):
    """2^18 pixels in 8 rows become an input of 32 rows."""

    async def run():
        async with served(store) as serving:
            loaded = serving.replica._champion
            limit = SAFETY * loaded.estimate_seconds((512, 512))
            assert SAFETY * loaded.estimate_seconds((8, 2**15)) > 2 * limit
            serving.replica._settings = ServeConfig(request_timeout_s=1.5 * limit)
            flat = picture(8, 2**15, kind="PNG")
            refused = await segment(serving.replica, flat[:-100])  # truncated, but it is not decoded
            return refused, await segment(serving.replica, picture(512, 512, kind="PNG"))

    refused, answer = asyncio.run(run())
    assert isinstance(refused, RequestError)
    assert refused.status == 413
    assert "32768x8" in str(refused)
    assert not isinstance(answer, RequestError)


class FailingModel:
    """A champion whose forward pass raises an error."""

    number, crop_pixels, max_image_pixels = "1", 64**2, 2**20

    def __init__(self, error):
        self._error = error

    def estimate_seconds(self, _):
        return 0.01

    def max_batch_size(self, _):
        return 1

    def info(self):
        return {}

    def predict(self, *_):
        raise self._error


@pytest.mark.parametrize(
    ("error", "is_healthy"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("an image that the model does not support"), True),
    ],
)
def test_an_error_of_the_champion_is_a_problem_and_an_unusable_device_fails_the_health_check(error, is_healthy):
    """A replica with an unusable device fails all requests at once, so it would look least loaded."""

    async def run():
        replica = Replica(ServeConfig(), "cpu", None, "r1")
        replica._champion = replica._loaded["1"] = FailingModel(error)
        with pytest.raises(type(error)):
            await segment(replica, picture())
        assert str(error) in replica._report().failures["1"]
        if is_healthy:
            replica.check_health()
        else:
            with pytest.raises(ServingError, match="illegal memory access"):
                replica.check_health()

    asyncio.run(run())
