"""Time limits of a stop request."""

import pytest

from segray.training.shutdown import CLOSE_TIME_S, StopRequest


@pytest.mark.parametrize(("wait_s", "patience_s"), [(None, float("inf")), (60, 60 - CLOSE_TIME_S), (3, 1.5)])
def test_the_ranks_have_less_time_than_the_process(wait_s, patience_s):
    stop = StopRequest()
    stop.request(wait_s)
    assert stop.requested
    assert stop.patience_s == patience_s
