"""Joining a Ray cluster, or starting one."""

import logging
import os
import secrets
import signal
import socket
import threading
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient  # type: ignore[attr-defined] # a compiled module
from ray.exceptions import AuthenticationError, RayError

from segray.cluster.nodes import autoscaler_nodes
from segray.core.errors import CapacityError
from segray.core.logging import silence_libraries

CONNECT_TIMEOUT_S = 8


def connect(log_to_driver: bool = True) -> None:
    """Joins the cluster of RAY_ADDRESS (as in a submitted job), or starts a private one on this machine.

    Args:
        log_to_driver: whether what its processes print is shown here.

    Raises:
        CapacityError: RAY_ADDRESS names a cluster that does not answer, or lets nobody in without its token.
    """
    if ray.is_initialized():
        return
    silence_libraries()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # reports wait for its poll; its default is 2 s
    address = os.environ.get("RAY_ADDRESS")
    if address is not None and "://" in address:
        raise CapacityError(
            f"RAY_ADDRESS is {address}, where jobs are given to; give this command to `ray job submit --address "
            f"{address} ...`, or name the cluster's own address, such as HEAD:6379."
        )
    try:
        if address:
            _probe(address)
            _init(address=address, log_to_driver=log_to_driver)
            _pin_ray_data_actors()
        else:
            _set_private_token()
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody preempts this machine
            _init(address="local", num_cpus=available_cpus(), log_to_driver=log_to_driver)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        found = f"the Ray cluster at {address or 'this machine'} cannot be used: {_why(error)}"
        raise CapacityError(f"{found}; {_fix(error, address)}.") from error


def _probe(address: str) -> None:
    """Finds out in seconds what Ray itself tries for minutes before it says so, or says otherwise.

    Raises:
        OSError: nobody is there, or nobody answers.
        AuthenticationError: nobody is let in without another token.
    """
    host, _, port = address.rpartition(":")
    if not host:  # "auto", say
        return
    ensure_token_if_auth_enabled({}, create_token_if_missing=False)  # GcsClient ends the process where there is none
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    found: list[RayError | None] = []
    thread = threading.Thread(target=lambda: found.append(_ping_head(address)), daemon=True, name="segray-knock")
    thread.start()
    thread.join(CONNECT_TIMEOUT_S)
    if not found:  # somebody else's port: Ray would try for forty seconds
        raise TimeoutError(f"what listens there has not answered in {CONNECT_TIMEOUT_S} s, as a head would")
    if found[0] is not None:
        raise found[0]


def _ping_head(address: str) -> RayError | None:
    """Returns what a head has against being asked something, nothing if it answers."""
    try:
        GcsClient(address=address).internal_kv_exists(b"segray", None, CONNECT_TIMEOUT_S)
    except RayError as error:
        return error
    return None


def _why(error: Exception) -> str:
    if isinstance(error, AuthenticationError):
        return "this shell lacks its token"
    told = error.strerror if isinstance(error, OSError) else None
    return (told or str(error)).strip().rstrip(".")


def _fix(error: Exception, address: str | None) -> str:
    """Returns what to do about a cluster that cannot be joined, or started."""
    if isinstance(error, AuthenticationError):
        return (
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to that of its head, or "
            "RAY_AUTH_MODE=disabled if it has none"
        )
    if "Version mismatch" in str(error):
        return "use the versions of the cluster, or install those of constraints.txt on its nodes"
    if address is None:
        return "look into /tmp/ray/session_latest/logs"
    return "start its head, or mend the address or the way there"


def _init(**settings: Any) -> None:
    """Starts Ray, which takes SIGTERM for itself and would end the process before anything is put away."""
    ours = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level=logging.WARNING, **settings)
    if ours is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)


def _pin_ray_data_actors() -> None:
    """Has Ray Data's own actors start here, if nodes may go again.

    They live as long as the cluster, on the node of whoever streams first; that would be a worker's, and a node with
    an actor on it is never idle: the autoscaler would not end it for as long as the cluster lasts.
    """
    if autoscaler_nodes():
        from ray.data._internal import stats  # noqa: PLC0415 two seconds, which others need not wait for
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator  # noqa: PLC0415

        stats.get_or_create_stats_actor()
        coordinator.get_or_create_autoscaling_coordinator()


def _set_private_token() -> None:
    """Gives the private cluster a token of its own: other users of the machine cannot join, no file is left.

    Ray turns token mode on by itself where RAY_AUTH_MODE is unset, and takes this token. (Setting the mode here
    comes too late: Ray read it when it was imported.)
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def available_cpus() -> int:
    """Returns how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
