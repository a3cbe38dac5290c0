"""Connection to an existing Ray cluster, or to a new private one."""

import logging
import os
import secrets
import signal
import socket
import threading
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayError

from segray.cluster.nodes import autoscaler_nodes
from segray.cluster.ray_internals import ping_head, require_token, start_ray_data_actors
from segray.core.errors import CapacityError
from segray.core.logging import silence_libraries

CONNECT_TIMEOUT_S = 8


def connect(log_to_driver: bool = True) -> None:
    """Connects to the cluster at RAY_ADDRESS (as in a submitted job), or starts a private one on this machine.

    Args:
        log_to_driver: whether the output of the cluster's processes is shown in this process.

    Raises:
        CapacityError: the cluster at RAY_ADDRESS does not respond or requires a token, RAY_ADDRESS is the address of a
            job server, or the private cluster cannot be started.
    """
    if ray.is_initialized():
        return
    silence_libraries()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # reports wait for this poll; the default is 2 s
    address = os.environ.get("RAY_ADDRESS")
    if address is not None and "://" in address:
        raise CapacityError(
            f"RAY_ADDRESS is {address}, the address of a job server; submit this command with `ray job submit "
            f"--address {address} ...`, or set RAY_ADDRESS to the address of the cluster, such as HEAD:6379."
        )
    try:
        if address:
            _probe(address)
            _init(address=address, log_to_driver=log_to_driver)
            _pin_ray_data_actors()
        else:
            _set_private_token()
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # the local machine is never preempted
            _init(address="local", num_cpus=available_cpus(), log_to_driver=log_to_driver)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        action = f"connect to the Ray cluster at {address}" if address else "start a Ray cluster on this machine"
        raise CapacityError(f"cannot {action}: {_reason(error)}; {_suggest_fix(error, address)}.") from error


def _probe(address: str) -> None:
    """Detects in seconds an unreachable head, for which Ray itself would retry for minutes.

    Raises:
        OSError: the head is not reachable or does not respond.
        AuthenticationError: the head rejects the token.
    """
    host, _, port = address.rpartition(":")
    if not host:  # for example "auto"
        return
    require_token()
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    results: list[RayError | None] = []
    thread = threading.Thread(target=lambda: results.append(_ping_error(address)), daemon=True, name="segray-ping")
    thread.start()
    thread.join(CONNECT_TIMEOUT_S)
    if not results:  # the port belongs to another program; Ray would retry for 40 seconds
        raise TimeoutError(f"the program at this port does not respond like a Ray head within {CONNECT_TIMEOUT_S} s")
    if results[0] is not None:
        raise results[0]


def _ping_error(address: str) -> RayError | None:
    """Returns the error of a request to the head, or None if the head responds."""
    try:
        ping_head(address, CONNECT_TIMEOUT_S)
    except RayError as error:
        return error
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, AuthenticationError):
        return "this shell does not have the token of the cluster"
    message = error.strerror if isinstance(error, OSError) else None
    return (message or str(error)).strip().rstrip(".")


def _suggest_fix(error: Exception, address: str | None) -> str:
    """Returns the suggested fix for a failed connection or start."""
    if isinstance(error, AuthenticationError):
        return (
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to the token of the head, or "
            "RAY_AUTH_MODE=disabled if the head has no token"
        )
    if "Version mismatch" in str(error):
        return "use the versions of the cluster, or install those of constraints.txt on its nodes"
    if address is None:
        return "read the logs in /tmp/ray/session_latest/logs"
    return "start the head, or correct RAY_ADDRESS or the network route to it"


def _init(**settings: Any) -> None:
    """Initializes Ray and restores the SIGTERM handler.

    Ray installs its own handler, which would end the process before resources are released.
    """
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level=logging.WARNING, **settings)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _pin_ray_data_actors() -> None:
    """Starts Ray Data's internal actors on the node of this process, if the cluster has an autoscaler.

    These actors live as long as the cluster, on the node of the first process that streams data. On the node of a
    worker, they would keep the node busy, so that the autoscaler would never remove it.
    """
    if autoscaler_nodes():
        start_ray_data_actors()


def _set_private_token() -> None:
    """Sets a random token for the private cluster, so that other users of the machine cannot connect.

    The token is not written to a file. If RAY_AUTH_MODE is unset, Ray enables token mode and uses this token. (Ray
    reads RAY_AUTH_MODE at import, so setting it here would have no effect.)
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def available_cpus() -> int:
    """Returns the number of CPUs that this process can use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
