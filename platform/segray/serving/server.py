"""Server lifecycle: checks the preconditions, starts Ray Serve, and shuts it down."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from segray.cluster.connect import connect
from segray.cluster.nodes import potential_nodes
from segray.cluster.ray_internals import serve_controller_name
from segray.cluster.resources import replica_device
from segray.config import Config, ServeConfig, paths
from segray.core.errors import CapacityError, ConfigError, RegistryError, ServingError
from segray.core.logging import silence_libraries
from segray.serving.deployments import CONTROLLER, build_application
from segray.serving.model_cache import ModelCache
from segray.serving.status import ServingState
from segray.tracking.client import connect_mlflow
from segray.tracking.registry import available_hint

APP_NAME = "segray"
CACHE_DIR = "served"
"""Subfolder of the results folder that holds the model cache."""
MIN_TOKEN_LENGTH = 16
POLL_S, STATE_TIMEOUT_S = 1.0, 10.0
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
LOGGING = LoggingConfig(log_level=logging.WARNING, enable_access_log=False)  # requests are private
SERVE_ENVIRONMENT = {
    # A replica computes in its own threads. A second event loop in the process only adds waiting time.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Ray runs its workers at niceness 15, behind all other processes of the machine.
    "RAY_worker_niceness": "0",
}


@dataclass(frozen=True)
class ServerInfo:
    """Description of a running server.

    Attributes:
        url: URL of the server.
        device: device of the replicas, "cpu" or "cuda".
        max_replicas: maximum number of replicas.
        version: version of the alias at the start.
    """

    url: str
    device: str
    max_replicas: int
    version: str


@contextmanager
def running_server(config: Config, log: Callable[[str], None] = print) -> Iterator[ServerInfo]:
    """Context manager that serves the model `tracking.model`.

    Args:
        config: configuration of serving and of the MLflow store.
        log: function that prints messages for the user.

    Raises:
        UserError: no version can be served, the configuration is invalid, or the cluster is too small.
        ServingError: the server could not be started.
    """
    settings, model, uri = config.serve, config.tracking.model, paths.tracking_uri(config)
    silence_libraries()
    token = _read_token(settings)
    if token is None and settings.host not in LOOPBACK_HOSTS:
        log(f"warning: the server on {settings.host} accepts requests without a token; set serve.token_file.")
    # Each alias has its own cache, so that servers do not share one.
    cache_dir = Path(paths.absolute_path("results", config.results)) / CACHE_DIR / settings.alias
    version = load_initial_version(model, uri, settings, cache_dir)
    _check_port(settings)
    for name, value in SERVE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    is_own_cluster = not ray.is_initialized() and "RAY_ADDRESS" not in os.environ
    connect()
    device, max_replicas = _plan_replicas(settings)
    _check_serve_not_running()
    try:
        _start_serve()
        _run(build_application(settings, model, uri, str(cache_dir), device, max_replicas, token))
        yield ServerInfo(_server_url(settings), device, max_replicas, version)
    finally:
        _stop(is_own_cluster)


def follow_state(on_state: Callable[[ServingState], None]) -> NoReturn:
    """Calls `on_state` with the status of the replicas every `POLL_S` seconds.

    Raises:
        ServingError: the application no longer runs.
    """
    asyncio.run(_poll_state(on_state))
    raise AssertionError


async def _poll_state(on_state: Callable[[ServingState], None]) -> NoReturn:
    controller: DeploymentHandle = serve.get_deployment_handle(CONTROLLER, APP_NAME)
    while True:
        await asyncio.sleep(POLL_S)
        try:
            async with asyncio.timeout(STATE_TIMEOUT_S):
                on_state(await controller.state.remote())
        except (RayError, RayServeException, TimeoutError) as error:
            if not _is_running():
                raise ServingError("another process stopped the server.") from error


def load_initial_version(model: str, uri: str, settings: ServeConfig, cache_dir: Path) -> str:
    """Fetches the version of the alias into the model cache and returns its number.

    The request is retried a few times while the registry does not respond.

    Args:
        model: name of the registered model.
        uri: URI of the MLflow store.
        settings: serving configuration, which contains the alias.
        cache_dir: folder of the model cache.

    Raises:
        RegistryError: the model or alias does not exist, the version has no files, or the registry does not respond.
    """
    client, cache = connect_mlflow(uri, f"model {model}"), ModelCache(model, uri, cache_dir)
    aliases = cache.aliases()
    if settings.alias not in aliases:
        reference = f"models:/{model}@{settings.alias}"
        raise RegistryError(f"no version of {model} has the alias {settings.alias}{available_hint(client, reference)}")
    cache.get(aliases[settings.alias])
    return aliases[settings.alias]


def _is_running() -> bool:
    try:
        return APP_NAME in serve.status().applications
    except (RayError, RayServeException, RuntimeError):
        return False


def _read_token(settings: ServeConfig) -> bytes | None:
    """Returns the SHA-256 digest of the token, or `None` without a token file. The token itself is not kept.

    Raises:
        ConfigError: the token file cannot be read, or does not contain a valid token.
    """
    if settings.token_file is None:
        return None
    try:
        token = Path(settings.token_file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read serve.token_file {settings.token_file} ({error}).") from error
    if len(token) < MIN_TOKEN_LENGTH or any(map(str.isspace, token)):
        raise ConfigError(
            f"serve.token_file {settings.token_file} contains no valid token; expected one word of at least "
            f"{MIN_TOKEN_LENGTH} characters, for example from `openssl rand -hex 32`."
        )
    return sha256(token.encode()).digest()


def _server_url(settings: ServeConfig) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host  # IPv6
    return f"http://{host}:{settings.port}"


def _check_port(settings: ServeConfig) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.create_server((settings.host, settings.port), family=family):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot listen on serve.port {settings.port} of serve.host {settings.host} ({error.strerror}); "
            "choose another port."
        ) from error


def _plan_replicas(settings: ServeConfig) -> tuple[str, int]:
    """Returns the device and the maximum number of replicas.

    Raises:
        CapacityError: the cluster cannot hold the configured number of replicas.
    """
    nodes = potential_nodes()
    gpus = sum(int(node.gpus) for node in nodes)
    device = replica_device(settings, nodes)
    capacity = gpus if device == "cuda" else sum(int(node.cpus // settings.cpus_per_replica) for node in nodes)
    num_replicas = max(settings.replicas, settings.max_replicas or 0)
    if num_replicas > capacity:
        needed = "a GPU" if device == "cuda" else f"{settings.cpus_per_replica} CPUs"
        name = "serve.replicas" if settings.replicas > capacity else "serve.max_replicas"
        raise CapacityError(
            f"{name} is {num_replicas}, and each replica needs {needed}; the cluster has capacity for {capacity}."
        )
    return device, capacity if settings.max_replicas is None else settings.max_replicas


def _check_serve_not_running() -> None:
    """Checks that the cluster does not run Ray Serve.

    Raises:
        ServingError: it does. That instance has its own address, and its shutdown would stop other applications.
    """
    actors = ray.util.list_named_actors(all_namespaces=True)
    if any(actor["name"] == serve_controller_name() for actor in actors):
        raise ServingError("Ray Serve is already running on this cluster; stop it first, or use another cluster.")


def _start_serve() -> None:
    try:
        serve.start(proxy_location=ProxyLocation.Disabled, logging_config=LOGGING)  # the gateway listens itself
    except (RayError, RuntimeError) as error:
        raise ServingError(f"cannot start Ray Serve: {error}") from error


def _run(app: serve.Application) -> None:
    try:
        serve.run(app, name=APP_NAME, route_prefix=None, logging_config=LOGGING)
    except (RayError, RuntimeError) as error:
        raise ServingError(f"cannot start the server: {_deployment_error()}") from error


def _stop(is_own_cluster: bool) -> None:
    """Completes the requests in progress and stops Ray Serve. Also stops a cluster that this process started."""
    if is_own_cluster:
        with suppress(RayServeException):  # Ray Serve did not start
            serve.delete(APP_NAME)
        ray.shutdown()
    else:
        serve.shutdown()


def _deployment_error() -> str:
    """Returns the error of the deployment that did not start, in one line."""
    application = serve.status().applications.get(APP_NAME)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    lines = [line.strip() for message in messages for line in message.splitlines()]
    errors = [line for line in lines if "Error" in line]
    return errors[-1] if errors else "Ray Serve reports no reason"
