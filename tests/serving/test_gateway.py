"""The gateway refuses what cannot be served in time, and does not pass a request that kills replicas on."""

import asyncio
import os
import signal
import time

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from segray.config import ServeConfig
from segray.core.errors import ServingError
from segray.serving.gateway import Gateway
from segray.serving.requests import RequestError, ResponseOptions
from segray.serving.responses import SegmentationResponse
from segray.serving.status import ServingState, TargetVersions

from .conftest import picture, served

RESPONSE = SegmentationResponse(b"mask", "image/png", "1", 0.1, 1)
KILLED = "The actor is dead because it was killed by `ray.kill`."
CRASHED = "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2."


def died(message):
    error = ActorDiedError()
    error.args = (message,)
    error.error_msg = message
    return error


class DyingReplicas:
    """Replicas that die with the given errors, before or after they begin, and then one that answers."""

    def __init__(self, *deaths):
        self._deaths, self.calls = list(deaths), 0

    async def segment(self, *_):
        self.calls += 1
        death = self._deaths.pop(0) if self._deaths else None
        if death is not None and not death[0]:
            raise death[1]
        yield None
        if death is not None:
            raise death[1]
        yield RESPONSE


class Controller:
    """Controller of a server whose replicas segment at most some pixels in time."""

    def __init__(self, pixels):
        self._state = ServingState(TargetVersions("1"), ("1",), {}, (), {}, pixels)

    async def sync(self, _):
        await asyncio.sleep(0.01)
        return TargetVersions("1")

    async def state(self):
        return self._state


def segment(*deaths):
    """The response after some deaths, and the number of replicas that got the request."""
    replicas = DyingReplicas(*deaths)
    gateway = Gateway(ServeConfig(), replicas, Controller(None), None, "g1")
    try:
        return asyncio.run(gateway.segment(picture(), ResponseOptions(), "client")), replicas.calls, gateway
    except ServingError as error:
        return error, replicas.calls, gateway


@pytest.mark.parametrize("error", [died(CRASHED), ActorUnavailableError("unavailable", None)])
def test_a_request_that_had_not_begun_is_retried_once(error):
    response, calls, gateway = segment((False, error))
    assert (response, calls) == (RESPONSE, 2)
    assert gateway.counters.counts["segray_retries", (), ""] == 1
    response, calls, _ = segment((False, error), (False, error))
    assert isinstance(response, ServingError)
    assert calls == 2


@pytest.mark.parametrize("error", [died(CRASHED), ActorUnavailableError("unavailable", None)])
def test_a_request_that_a_replica_computed_when_it_died_is_not_given_to_another(error):
    response, calls, _ = segment((True, error))
    assert "the image may be the cause" in str(response)
    assert calls == 1


def test_a_request_is_retried_if_the_death_had_another_cause():
    assert segment((True, died(KILLED)))[:2] == (RESPONSE, 2)


def test_an_image_that_takes_longer_than_the_timeout_is_refused_at_once_with_the_largest_size():
    async def run():
        gateway = Gateway(ServeConfig(), DyingReplicas(), Controller(10_000), None, "g1")
        gateway.start()
        await asyncio.sleep(0.1)
        await gateway.validate([("small.jpg", picture(80, 100))])
        with pytest.raises(RequestError, match=r"200x100; .* at most 10000 pixels.* 100x100, in") as refused:
            await gateway.validate([("small.jpg", picture()), ("large.jpg", picture(100, 200))])
        return refused.value.status

    assert asyncio.run(run()) == 413


@pytest.mark.parametrize(("reported", "limit"), [(0, 0), (None, 2**25), (2**26, 2**25)])
def test_a_limit_of_zero_is_a_limit(reported, limit):
    async def run():
        gateway = Gateway(ServeConfig(), DyingReplicas(), Controller(reported), None, "g1")
        gateway.start()
        await asyncio.sleep(0.1)
        return gateway.max_image_pixels

    assert asyncio.run(run()) == limit


def test_the_largest_size_is_reported(store):
    async def run():
        async with served(store) as serving:
            ready = (await serving.client.get("/readyz")).json()
            model = (await serving.client.get("/v1/model")).json()
            return ready["max_image_pixels"], model["max_image_pixels"], serving.replica._champion.max_image_pixels

    ready, model, expected = asyncio.run(run())
    assert ready == model == expected > 0


def test_one_client_leaves_places_for_another():
    async def run():
        gateway = Gateway(ServeConfig(max_pending_images=8), DyingReplicas(), Controller(None), None, "g1")
        held, refused = [], []
        for _ in range(8):
            place = gateway.reserve("greedy")
            try:
                await place.__aenter__()
                held.append(place)
            except RequestError as error:
                refused.append(error.status)
        async with gateway.reserve("modest"):
            pass
        for place in held:
            await place.__aexit__(None, None, None)
        async with gateway.reserve("greedy", 8):
            return len(held), refused

    assert asyncio.run(run()) == (4, [429] * 4)


@ray.remote(num_cpus=0)
class Computation:
    """Actor that dies while it computes."""

    def die(self, signal_number):
        os.kill(os.getpid(), signal_number)

    def exit(self):
        os._exit(1)

    def hang(self):
        time.sleep(120)


def real_death(cause):
    """The error of Ray for a call whose actor died."""
    actor = Computation.remote()
    if cause == "ray.kill":
        call = actor.hang.remote()
        ray.kill(actor)
    else:
        call = actor.exit.remote() if cause == "exit" else actor.die.remote(signal.SIGKILL)
    with pytest.raises(RayError) as raised:
        ray.get(call, timeout=60)
    return raised.value


@pytest.mark.parametrize(("cause", "num_calls"), [("exit", 1), ("SIGKILL", 1), ("ray.kill", 2)])
def test_a_request_is_retried_after_a_real_death_only_if_it_is_not_the_cause(ray_cluster, cause, num_calls):
    response, calls, _ = segment((True, real_death(cause)))
    assert calls == num_calls
    assert (response == RESPONSE) == (num_calls == 2)
    assert num_calls == 2 or "the image may be the cause" in str(response)
