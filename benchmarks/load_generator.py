"""Load on a server, from a process of its own: some clients, each with one request at a time."""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, time

import aiohttp
import numpy as np

from segray.data.images import Mask, decode_mask

VERSION = "X-Segray-Version"
MAX_DIFFERENT = 1e-5
"""Share of the pixels in which a mask of a batch may differ."""
FAILED = 0
"""The status of a request that had no answer."""

Check = Callable[[int, str, bytes], bool]
"""From the number of a body, the version that answered and its answer to whether that is right."""


@dataclass(frozen=True)
class MaskChecker:
    """Says that an answer is right if it is the mask that is known of its version.

    Attributes:
        known: (H, W), by number of the body and version.
    """

    known: Mapping[tuple[int, str], Mask]

    def __call__(self, which: int, version: str, answer: bytes) -> bool:
        """Returns whether it is, but for the pixels that a batch may change."""
        return bool((decode_mask(answer) == self.known[which, version]).mean() >= 1 - MAX_DIFFERENT)


@dataclass(frozen=True)
class LoadPlan:
    """What is asked.

    Attributes:
        url: asked, by POST.
        bodies: sent in turn, each with its headers.
        clients: at work at once.
        seconds: for so long.
        rate: requests a second of all clients together; none sends each when the one before it is answered.
        most: requests in all; none ends by the time alone.
    """

    url: str
    bodies: Sequence[tuple[bytes, Mapping[str, str]]]
    clients: int
    seconds: float
    rate: float | None = None
    most: int | None = None


@dataclass(frozen=True)
class RequestSample:
    """A request.

    Attributes:
        sent: when, or when it was due, seconds from the beginning.
        seconds: until its answer was there.
        status: of HTTP, 0 where there was none.
        version: that answered.
        is_right: whether the answer was; none if nobody looked.
        message: by an answer that is not 200, or by the error.
    """

    sent: float
    seconds: float
    status: int
    version: str
    is_right: bool | None
    message: str = ""


@dataclass(frozen=True)
class LoadResult:
    """All requests of a plan, as they were sent.

    Attributes:
        samples: of the requests.
        seconds: from the beginning to the last answer.
        begun: when that was, seconds since 1970.
    """

    samples: tuple[RequestSample, ...]
    seconds: float
    begun: float

    @property
    def rate(self) -> float:
        """Answers a second that were no refusals."""
        return sum(one.status == 200 for one in self.samples) / self.seconds

    @property
    def failed(self) -> list[RequestSample]:
        """Requests that were not answered, or refused, or wrongly answered."""
        return [one for one in self.samples if one.status != 200 or one.is_right is False]

    def quantile_ms(self, share: float) -> float:
        """Returns the milliseconds in which that share of the requests was answered."""
        return float(np.quantile([one.seconds for one in self.samples], share) * 1e3)


def apply_load(plan: LoadPlan, check: Check | None = None) -> LoadResult:
    """Returns what became of a plan; to be called in a process that does nothing else."""
    return asyncio.run(_put(plan, check))


async def _put(plan: LoadPlan, check: Check | None) -> LoadResult:
    samples, numbers = list[RequestSample](), iter(range(plan.most or 2**62))
    connector = aiohttp.TCPConnector(limit=plan.clients)
    async with aiohttp.ClientSession(connector=connector) as session:
        begun, clock = perf_counter(), time()
        await asyncio.gather(*(_client(session, plan, numbers, begun, samples, check) for _ in range(plan.clients)))
        return LoadResult(tuple(sorted(samples, key=lambda one: one.sent)), perf_counter() - begun, clock)


async def _client(
    session: aiohttp.ClientSession,
    plan: LoadPlan,
    numbers: Iterator[int],
    begun: float,
    samples: list[RequestSample],
    check: Check | None,
) -> None:
    """Sends one request after another, in its rhythm where the plan has a rate."""
    period = 0.0 if plan.rate is None else plan.clients / plan.rate
    due = begun + random.random() * period
    while True:
        await asyncio.sleep(max(0.0, due - perf_counter()))
        if perf_counter() - begun >= plan.seconds or (number := next(numbers, None)) is None:
            return
        since = perf_counter() if plan.rate is None else due  # a client that is late made its request wait
        samples.append(await _asked(session, plan, number % len(plan.bodies), begun, since, check))
        due = max(due + period, perf_counter() - period)


async def _asked(
    session: aiohttp.ClientSession, plan: LoadPlan, which: int, begun: float, sent: float, check: Check | None
) -> RequestSample:
    body, headers = plan.bodies[which]
    try:
        async with session.post(plan.url, data=body, headers=headers) as answer:
            content = await answer.read()
            seconds, version = perf_counter() - sent, answer.headers.get(VERSION, "")
            is_right = check(which, version, content) if check is not None and answer.status == 200 else None
            said = "" if answer.status == 200 else content[:200].decode("utf-8", "replace")
            return RequestSample(sent - begun, seconds, answer.status, version, is_right, said)
    except (aiohttp.ClientError, OSError) as error:
        return RequestSample(sent - begun, perf_counter() - sent, FAILED, "", None, f"{type(error).__name__}: {error}")
