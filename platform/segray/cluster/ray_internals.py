"""The parts of Ray without a public API that segray uses.

A Ray release can move or remove any of them. To support another release, run the tests with it, correct this module and
its counterparts in `training` and `tune`, and add the release to `KNOWN_RAY_VERSIONS`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

KNOWN_RAY_VERSIONS = "2.60"


@contextmanager
def explain_ray_errors() -> Iterator[None]:
    """Names the supported Ray versions in the error of a missing module or attribute of Ray. Also works as a decorator.

    Raises:
        ImportError: this Ray release lacks a module or an attribute.
    """
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"Ray {ray.__version__} lacks a private module or function that segray uses ({error}); segray works with "
            f"Ray {KNOWN_RAY_VERSIONS}; install the version in constraints.txt."
        ) from error


with explain_ray_errors():
    from ray._private import worker as _worker
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._private.state import state as _state
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # a compiled module


@explain_ray_errors()
def require_token() -> None:
    """Checks that a token exists if RAY_AUTH_MODE requires one. Without this check, GcsClient ends the process.

    Raises:
        AuthenticationError: there is no token.
    """
    ensure_token_if_auth_enabled({}, create_token_if_missing=False)


@explain_ray_errors()
def ping_head(address: str, timeout_s: float) -> None:
    """Sends a request to the head of a cluster and waits for the response.

    Raises:
        RayError: the head does not respond, or rejects the token.
    """
    GcsClient(address=address).internal_kv_exists(b"segray", None, timeout_s)


@explain_ray_errors()
def read_cluster_config() -> Any:
    """Returns the node types that the autoscaler can start (a ClusterConfig), or None without an autoscaler."""
    return _state.get_cluster_config()


@explain_ray_errors()
def report_cluster_config(address: str, config: Any) -> None:
    """Sends the node types that the autoscaler can start (a ClusterConfig) to the head of a cluster."""
    GcsClient(address=address).report_cluster_config(config.SerializeToString())


@explain_ray_errors()
def ray_session_dir() -> str:
    """Returns the folder of Ray's session files on the node of this process."""
    return str(_worker._global_node.get_session_dir_path())


@explain_ray_errors()
def start_ray_data_actors() -> None:
    """Starts the actors that all Ray Data processes of the cluster share, on the node of this process."""
    from ray.data._internal import stats  # noqa: PLC0415 takes two seconds to import
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator  # noqa: PLC0415

    stats.get_or_create_stats_actor()
    coordinator.get_or_create_autoscaling_coordinator()


@explain_ray_errors()
def serve_controller_name() -> str:
    """Returns the name of Ray Serve's controller actor."""
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME  # noqa: PLC0415 takes a second to import

    return str(SERVE_CONTROLLER_NAME)


def is_external_death(error: Exception) -> bool:
    """Returns `True` if an actor died because of its node or `ray.kill`, and not because of what it computed.

    Ray reports the cause only in the message of the error.
    """
    return any(cause in str(error) for cause in ("ray.kill", "node died", "node has died", "node was preempted"))
