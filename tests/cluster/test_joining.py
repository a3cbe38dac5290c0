"""Clusters that cannot be joined."""

import pytest
import ray

from segray import cluster
from segray.errors import CapacityError


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_an_address_that_is_no_drivers_is_told_with_what_takes_it(address, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(CapacityError, match=r"give this command to `ray job submit .*, or name .* HEAD:6379"):
        cluster.connect()
