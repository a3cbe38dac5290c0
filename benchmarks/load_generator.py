"""Load generator for a server, for use in a separate process: several clients with one request at a time each."""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import perf_counter, time

import aiohttp
import numpy as np

from segray.data.images import Mask, decode_mask

VERSION = "X-Segray-Version"
MAX_DIFFERENT = 1e-5
"""Permitted fraction of pixels in which a mask may differ because of batching."""
NO_RESPONSE = 0
"""Status of a request without a response."""

Check = Callable[[int, str, bytes], bool]
"""Maps the index of a body, the version of the response and the response to whether it is correct."""


@dataclass(frozen=True)
class MaskChecker:
    """Checks that a response equals the expected mask of its version.

    Attributes:
        expected: expected masks (H, W), by index of the body and version.
    """

    expected: Mapping[tuple[int, str], Mask]

    def __call__(self, body_index: int, version: str, response: bytes) -> bool:
        """Returns True if the mask is correct, except for the pixels that batching may change."""
        return bool((decode_mask(response) == self.expected[body_index, version]).mean() >= 1 - MAX_DIFFERENT)


@dataclass(frozen=True)
class LoadPlan:
    """The load to be applied.

    Attributes:
        url: URL of the POST requests.
        bodies: request bodies with their headers, sent in turn.
        clients: number of concurrent clients.
        seconds: duration of the load.
        rate: requests per second of all clients; with `None`, a client sends each request after the previous response.
        max_requests: maximum number of requests; `None` limits only the duration.
        network: first three bytes of the local addresses, for example 127.0.1; each client has its own address. `None`
            leaves the choice to the system.
        method: HTTP method.
    """

    url: str
    bodies: Sequence[tuple[bytes, Mapping[str, str]]]
    clients: int
    seconds: float
    rate: float | None = None
    max_requests: int | None = None
    network: str | None = None
    method: str = "POST"


@dataclass(frozen=True)
class RequestSample:
    """The result of a request.

    Attributes:
        sent: time at which the request was sent or due, in seconds from the start.
        seconds: time until the response.
        status: HTTP status, 0 if there was no response.
        version: version of the model that responded.
        is_right: whether the response was correct; `None` if it was not checked.
        message: message of a response with a status other than 200, or of the error.
    """

    sent: float
    seconds: float
    status: int
    version: str
    is_right: bool | None
    message: str = ""


@dataclass(frozen=True)
class LoadResult:
    """The results of all requests of a plan, in the order of sending.

    Attributes:
        samples: results of the requests.
        seconds: time from the start to the last response.
        begun: start time, in seconds since 1970.
    """

    samples: tuple[RequestSample, ...]
    seconds: float
    begun: float

    @property
    def rate(self) -> float:
        """Successful responses per second."""
        return sum(sample.status == 200 for sample in self.samples) / self.seconds

    @property
    def failed(self) -> list[RequestSample]:
        """Requests without a response, with an error status or with an incorrect response."""
        return [sample for sample in self.samples if sample.status != 200 or sample.is_right is False]

    def quantile_ms(self, quantile: float) -> float:
        """Returns the given quantile of the response times in milliseconds."""
        return float(np.quantile([sample.seconds for sample in self.samples], quantile) * 1e3)


def apply_load(plan: LoadPlan, check: Check | None = None) -> LoadResult:
    """Applies the load of a plan and returns the results. Call it in a process that does nothing else."""
    return asyncio.run(run_clients(plan, check))


async def run_clients(plan: LoadPlan, check: Check | None) -> LoadResult:
    """Applies the load of a plan in the current event loop, see `apply_load`."""
    samples, numbers = list[RequestSample](), iter(range(plan.max_requests or 2**62))
    begin, clock = perf_counter(), time()
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(_session(plan, number)) for number in range(plan.clients)]
        await asyncio.gather(*(_client(session, plan, numbers, begin, samples, check) for session in sessions))
        return LoadResult(tuple(sorted(samples, key=lambda sample: sample.sent)), perf_counter() - begin, clock)


def _session(plan: LoadPlan, number: int) -> aiohttp.ClientSession:
    local_address = (f"{plan.network}.{number % 254 + 1}", 0) if plan.network else None
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1, local_addr=local_address))


async def _client(
    session: aiohttp.ClientSession,
    plan: LoadPlan,
    numbers: Iterator[int],
    begin: float,
    samples: list[RequestSample],
    check: Check | None,
) -> None:
    """Sends requests sequentially, at fixed intervals if the plan has a rate."""
    period = 0.0 if plan.rate is None else plan.clients / plan.rate
    due = begin + random.random() * period
    while True:
        await asyncio.sleep(max(0.0, due - perf_counter()))
        if perf_counter() - begin >= plan.seconds or (number := next(numbers, None)) is None:
            return
        since = perf_counter() if plan.rate is None else due  # includes the delay of a late client
        samples.append(await _send(session, plan, number % len(plan.bodies), begin, since, check))
        due = max(due + period, perf_counter() - period)


async def _send(
    session: aiohttp.ClientSession, plan: LoadPlan, body_index: int, begin: float, sent: float, check: Check | None
) -> RequestSample:
    body, headers = plan.bodies[body_index]
    try:
        async with session.request(plan.method, plan.url, data=body, headers=headers) as response:
            content = await response.read()
            seconds, version = perf_counter() - sent, response.headers.get(VERSION, "")
            is_right = check(body_index, version, content) if check is not None and response.status == 200 else None
            message = "" if response.status == 200 else content[:200].decode("utf-8", "replace")
            return RequestSample(sent - begin, seconds, response.status, version, is_right, message)
    except (aiohttp.ClientError, OSError) as error:
        return RequestSample(
            sent - begin, perf_counter() - sent, NO_RESPONSE, "", None, f"{type(error).__name__}: {error}"
        )
