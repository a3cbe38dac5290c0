"""The client of the replicas cancels a computation only if its response is not needed."""

import asyncio
from contextlib import aclosing

import pytest

from segray.serving.deployments import ReplicaClient


class Stream:
    """Handle of a deployment, its method and its stream of responses, which records that it is cancelled."""

    def __init__(self, *responses):
        self._responses, self.is_cancelled, self.segment = iter(responses), False, self

    def options(self, **_):
        return self

    def remote(self, *_):
        return self

    def __aiter__(self):
        return self

    async def __anext__(self):
        return next(self._responses)

    def cancel(self):
        self.is_cancelled = True


@pytest.mark.parametrize(("num_read", "is_cancelled"), [(1, True), (2, False)])
def test_only_a_computation_without_a_response_is_cancelled(num_read, is_cancelled):
    async def run():
        stream = Stream(None, "response")
        async with aclosing(ReplicaClient(stream).segment(b"", None, "client")) as responses:
            for _ in range(num_read):
                await anext(responses)
        return stream.is_cancelled

    assert asyncio.run(run()) == is_cancelled
