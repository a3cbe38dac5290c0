"""Orderly shutdown of a run on request: ranks save a checkpoint, then the controller ends the ranks and itself."""

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
CLOSE_TIME_S = 15.0  # time that a run needs to close its records after its ranks have exited
NODE_WAIT_NOTICE_S = 20.0  # workers on existing nodes have started by then


class StopRequest:
    """Request to stop a run.

    Attributes:
        patience_s: seconds that the ranks have to save a checkpoint.
        requested: `True` if the run must stop after saving a checkpoint of its current state.
        forced: `True` if the run must stop immediately; only its last checkpoint remains.
    """

    requested = forced = False  # not events: a signal handler may interrupt another one that holds the lock of an event

    patience_s = float("inf")

    def request(self, wait_s: int | None = None) -> None:
        """Requests a stop.

        Args:
            wait_s: seconds until the job is killed; `None` sets no limit.
        """
        if wait_s is not None:
            self.patience_s = max(wait_s - CLOSE_TIME_S, wait_s / 2)
        self.requested = True

    def force(self) -> None:
        """Requests an immediate stop."""
        self.requested = self.forced = True


class RegisterController(ControllerCallback):  # type: ignore[misc]
    """Callback that registers the controller with the heartbeat monitor.

    Ray's trainer does not expose the handle of the controller.
    """

    def __init__(self, pulse: ray.actor.ActorHandle) -> None:
        self._pulse = pulse

    def after_controller_start(self, *_: Any) -> None:
        """Registers the controller."""
        self._pulse.set_controller.remote(ray.get_runtime_context().current_actor)


@contextmanager
def stop_on_request(stop: StopRequest, pulse: ray.actor.ActorHandle, say: Callable[[str], None]) -> Iterator[None]:
    """Context manager that stops the run when requested. The code that waits for the run then gets an error from Ray.

    A message also reports that the run waits for nodes, which Ray does not print.

    On exit, the controller is killed in every case, which frees the resources reserved by its workers. A failed
    controller would otherwise keep them as long as this process lives, and the next run of a sweep would never start.

    Args:
        stop: stop request of the run.
        pulse: heartbeat monitor actor of the run.
        say: callback that receives a line when a stop is requested or the run waits for nodes.
    """
    over = threading.Event()
    ending = threading.Thread(target=_end, args=(stop, over, pulse, say), daemon=True, name="segray-stop")
    ending.start()
    try:
        yield
    finally:
        over.set()
        ending.join()
        with suppress(RayError):  # the cluster and all its processes are gone
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
        with suppress(RayError):  # the controller may exit during its answer
            if _has_ended(stop, pulse):
                return


def _has_ended(stop: StopRequest, pulse: ray.actor.ActorHandle) -> bool:
    """Forwards the stop request to the ranks, or ends the controller if there are no live ranks or no time left.

    Returns:
        `True` if the controller was ended.
    """
    if ray.get(pulse.stop.remote(), timeout=PATIENCE_S) and not stop.forced:
        return False
    controller = ray.get(pulse.controller.remote(), timeout=PATIENCE_S)
    if controller is None:  # it may still be starting
        return False
    ended, _ = ray.wait([controller.abort.remote()], timeout=ABORT_S)
    if not ended:  # it does not respond while it waits for nodes
        ray.kill(controller)
    return True
