"""Ending a run from outside, in order: its controller ends its workers, then itself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import ControllerCallback

POLL_S = 0.1
PATIENCE_S = 10.0


class Announced(ControllerCallback):  # type: ignore[misc]
    """Has the pulse know the controller, whose handle Ray's trainer keeps to itself."""

    def __init__(self, pulse: ray.actor.ActorHandle) -> None:
        self._pulse = pulse

    def after_controller_start(self, *_: Any) -> None:
        """Tells it."""
        self._pulse.led_by.remote(ray.get_runtime_context().current_actor)


@contextmanager
def stoppable(stop: threading.Event | None, pulse: ray.actor.ActorHandle) -> Iterator[None]:
    """Ends the run of a pulse as soon as it is asked to; what waits for the run is then raised an error of Ray's.

    Whatever becomes of the run, its controller is gone behind this, and with it what its workers reserved: one that
    failed itself would hold that as long as this process lasts, and the next run of a sweep wait for it for ever.

    Args:
        stop: set by who wants it to end; none lets nobody.
        pulse: of the run.
    """
    over = threading.Event()
    aborting = threading.Thread(target=_abort, args=(stop, over, pulse), daemon=True, name="segray-stop")
    if stop is not None:
        aborting.start()
    try:
        yield
    finally:
        over.set()
        if stop is not None:
            aborting.join()
        with suppress(RayError):  # the cluster is gone, and all its processes
            controller = ray.get(pulse.controller.remote(), timeout=PATIENCE_S)
            if controller is not None:
                ray.kill(controller)


def _abort(stop: threading.Event | None, over: threading.Event, pulse: ray.actor.ActorHandle) -> None:
    while stop is not None and not stop.wait(POLL_S):
        if over.is_set():
            return
    while not over.wait(POLL_S):  # the controller may only be on its way
        with suppress(RayError):  # it goes as it answers
            controller = ray.get(pulse.controller.remote())
            if controller is not None:
                ray.get(controller.abort.remote())
                return
