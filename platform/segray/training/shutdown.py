"""Ending a run from outside, in order: its ranks keep what they did, and its controller ends them, then itself."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import ControllerCallback

POLL_S = 0.1
PATIENCE_S = 10.0
ABORT_S = 3.0
CLOSE_TIME_S = 15.0  # that a run takes to close its records, once its ranks are gone
NODE_WAIT_NOTICE_S = 20.0  # workers on nodes that are there are at work by then


class StopRequest:
    """What a run is asked for by whoever wants it to end.

    Attributes:
        patience_s: seconds that the ranks have for their checkpoint.
        requested: to end once a checkpoint holds all it did.
        forced: to end at once; its last checkpoint is what is left.
    """

    requested = forced = False  # no events: they are set by signal handlers, which one of them may interrupt

    patience_s = float("inf")

    def request(self, wait_s: int | None = None) -> None:
        """Asks it to end.

        Args:
            wait_s: seconds until it is killed; none leaves it all it takes.
        """
        if wait_s is not None:
            self.patience_s = max(wait_s - CLOSE_TIME_S, wait_s / 2)
        self.requested = True

    def force(self) -> None:
        """Asks it to end at once."""
        self.requested = self.forced = True


class RegisterController(ControllerCallback):  # type: ignore[misc]
    """Has the pulse know the controller, whose handle Ray's trainer keeps to itself."""

    def __init__(self, pulse: ray.actor.ActorHandle) -> None:
        self._pulse = pulse

    def after_controller_start(self, *_: Any) -> None:
        """Tells it."""
        self._pulse.set_controller.remote(ray.get_runtime_context().current_actor)


@contextmanager
def stop_on_request(stop: StopRequest, pulse: ray.actor.ActorHandle, say: Callable[[str], None]) -> Iterator[None]:
    """Ends the run of a pulse when it is asked to; what waits for the run is then raised an error of Ray's.

    It also says when the run waits for nodes: Ray itself does so without a word.

    Whatever becomes of the run, its controller is gone behind this, and with it what its workers reserved: one that
    failed itself would hold that as long as this process lasts, and the next run of a sweep wait for it for ever.

    Args:
        stop: what the run is asked for.
        pulse: of the run.
        say: called with a line once it is asked, or waits.
    """
    over = threading.Event()
    ending = threading.Thread(target=_end, args=(stop, over, pulse, say), daemon=True, name="segray-stop")
    ending.start()
    try:
        yield
    finally:
        over.set()
        ending.join()
        with suppress(RayError):  # the cluster is gone, and all its processes
            controller = ray.get(pulse.controller.remote(), timeout=PATIENCE_S)
            if controller is not None:
                ray.kill(controller)


def _end(stop: StopRequest, over: threading.Event, pulse: ray.actor.ActorHandle, say: Callable[[str], None]) -> None:
    nodes_until = monotonic() + NODE_WAIT_NOTICE_S
    while not stop.requested:
        if over.wait(POLL_S):
            return
        if monotonic() > nodes_until:
            nodes_until = float("inf")
            with suppress(RayError):
                if not ray.get(pulse.has_live_ranks.remote(), timeout=PATIENCE_S):
                    say("waiting for nodes with room for the workers ...")
    if not stop.forced:
        say("stopping: a checkpoint is kept of this step; once more ends it at once.")
    until = monotonic() + stop.patience_s
    while not over.wait(POLL_S):
        if monotonic() > until:
            stop.force()
        with suppress(RayError):  # the controller goes as it answers
            if _has_ended(stop, pulse):
                return


def _has_ended(stop: StopRequest, pulse: ray.actor.ActorHandle) -> bool:
    """Tells the ranks to stop, or ends the controller, where there are none, or no time for them; returns whether."""
    if ray.get(pulse.stop.remote(), timeout=PATIENCE_S) and not stop.forced:
        return False
    controller = ray.get(pulse.controller.remote(), timeout=PATIENCE_S)
    if controller is None:  # it may only be on its way
        return False
    ended, _ = ray.wait([controller.abort.remote()], timeout=ABORT_S)
    if not ended:  # it hears nothing while it waits for nodes
        ray.kill(controller)
    return True
