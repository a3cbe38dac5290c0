"""Orderly shutdown of a run on request: ranks save a checkpoint, then the controller ends the ranks and itself."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import remove_placement_group

from segray.training.ray_internals import ControllerCallback, WorkerGroupCallback

POLL_S = 0.1
RAY_TIMEOUT_S = 10.0  # timeout for a cluster that does not respond
ABORT_TIMEOUT_S = 3.0
CLOSE_TIME_S = 15.0  # time that a run needs to close its records after its ranks have exited
NODE_WAIT_NOTICE_S = 20.0  # workers on existing nodes have started by then


class StopRequest:
    """Request to stop a run, in the process of its driver.

    Attributes:
        patience_s: seconds that the ranks have to save a checkpoint.
        requested: `True` if the run must stop after saving a checkpoint of its current state.
        forced: `True` if the run must stop immediately; only its last checkpoint remains.
    """

    requested = forced = False  # not events: a signal handler may interrupt another one that holds the lock of an event

    patience_s = float("inf")

    def request(self, job_timeout_s: int | None = None) -> None:
        """Requests a stop.

        Args:
            job_timeout_s: seconds until the job is killed; `None` sets no limit.
        """
        if job_timeout_s is not None:
            self.patience_s = max(job_timeout_s - CLOSE_TIME_S, job_timeout_s / 2)
        self.requested = True

    def force(self) -> None:
        """Requests an immediate stop."""
        self.requested = self.forced = True


class StopSignal:
    """Actor that passes a stop request to the processes that poll it."""

    def __init__(self) -> None:
        self._is_requested = False
        self._timeout_s: int | None = None

    def request_stop(self, timeout_s: int | None = None) -> None:
        """Requests a stop.

        Args:
            timeout_s: seconds until the job is killed; `None` sets no limit.
        """
        self._is_requested, self._timeout_s = True, timeout_s

    def is_stop_requested(self) -> bool:
        """Returns `True` if a stop was requested."""
        return self._is_requested

    def stop_timeout_s(self) -> int | None:
        """Returns the time limit of the stop request in seconds; `None` means no limit."""
        return self._timeout_s


class RegisterController(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Callback that registers the controller and the resources of its workers with the heartbeat monitor.

    Ray's trainer does not expose their handles.
    """

    def __init__(self, monitor: ray.actor.ActorHandle) -> None:
        self._monitor = monitor

    def after_controller_start(self, *_: Any) -> None:
        """Registers the controller."""
        self._monitor.set_controller.remote(ray.get_runtime_context().current_actor)

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Registers the placement group of the workers."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._monitor.set_placement_group.remote(group)


@contextmanager
def stop_on_request(stop: StopRequest, monitor: ray.actor.ActorHandle, say: Callable[[str], None]) -> Iterator[None]:
    """Context manager that stops the run when requested. The code that waits for the run then gets an error from Ray.

    A message also reports that the run waits for nodes, which Ray does not print.

    On exit, the controller is killed and the placement group of its workers removed in every case. Ray keeps the group
    of a controller that failed or was killed as long as this process lives, and the next run of a sweep, or the next
    attempt of this run, would never start.

    Args:
        stop: stop request of the run.
        monitor: `HeartbeatMonitor` actor of the run.
        say: callback that receives a line when a stop is requested or the run waits for nodes.
    """
    run_ended = threading.Event()
    stopper = threading.Thread(
        target=_stop_when_requested, args=(stop, run_ended, monitor, say), daemon=True, name="segray-stop"
    )
    stopper.start()
    try:
        yield
    finally:
        run_ended.set()
        stopper.join()
        with suppress(RayError):  # the cluster and all its processes are gone
            handles = [monitor.controller.remote(), monitor.placement_group.remote()]
            controller, group = ray.get(handles, timeout=RAY_TIMEOUT_S)
            if controller is not None:
                ray.kill(controller)
            if group is not None:
                remove_placement_group(group)


def _stop_when_requested(
    stop: StopRequest, run_ended: threading.Event, monitor: ray.actor.ActorHandle, say: Callable[[str], None]
) -> None:
    if not _wait_for_request(stop, run_ended, monitor, say):
        return
    if not stop.forced:
        say("stopping after a checkpoint of the current step; a second request stops immediately.")
    deadline = monotonic() + stop.patience_s
    while not run_ended.wait(POLL_S):
        if monotonic() > deadline:
            stop.force()
        with suppress(RayError):  # the controller may exit during its answer
            if _try_stop(stop, monitor):
                return


def _wait_for_request(
    stop: StopRequest, run_ended: threading.Event, monitor: ray.actor.ActorHandle, say: Callable[[str], None]
) -> bool:
    """Waits for a stop request. Returns `False` if the run ended before."""
    notice_at = monotonic() + NODE_WAIT_NOTICE_S
    while not stop.requested:
        if run_ended.wait(POLL_S):
            return False
        if monotonic() > notice_at:
            notice_at = float("inf")
            with suppress(RayError):
                if not ray.get(monitor.has_live_ranks.remote(), timeout=RAY_TIMEOUT_S):
                    say("waiting for nodes with free resources for the workers ...")
    return True


def _try_stop(stop: StopRequest, monitor: ray.actor.ActorHandle) -> bool:
    """Forwards the stop request to the ranks, or ends the controller if there are no live ranks or no time left.

    Returns:
        `True` if the controller was ended.
    """
    monitor.request_stop.remote()
    if ray.get(monitor.has_live_ranks.remote(), timeout=RAY_TIMEOUT_S) and not stop.forced:
        return False
    controller = ray.get(monitor.controller.remote(), timeout=RAY_TIMEOUT_S)
    if controller is None:  # it may still be starting
        return False
    ended, _ = ray.wait([controller.abort.remote()], timeout=ABORT_TIMEOUT_S)
    if not ended:  # it does not respond while it waits for nodes
        ray.kill(controller)
    return True
