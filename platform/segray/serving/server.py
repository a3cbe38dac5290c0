"""Server lifecycle: checks the preconditions, starts Ray Serve, and shuts it down."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from segray.cluster.connect import connect
from segray.cluster.nodes import potential_nodes
from segray.config import Config, ServeConfig, paths
from segray.core.errors import CapacityError, ConfigError, RegistryError, ServingError
from segray.core.logging import silence_libraries
from segray.serving.controller import ServingState
from segray.serving.deployments import WATCHER, build_application
from segray.serving.model_cache import ModelCache
from segray.tracking.client import connect_mlflow
from segray.tracking.registry import available_hint

APP_NAME = "segray"
CACHE_DIR = "served"
"""Subfolder of the results folder that holds the model cache."""
MIN_TOKEN_LENGTH = 16
POLL_S, PATIENCE_S = 1.0, 10.0
LOGGING = LoggingConfig(log_level=logging.WARNING, enable_access_log=False)  # requests are private
SERVE_ENVIRONMENT = {
    # A replica computes in its own threads. A second event loop in the process only adds waiting time.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
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
def running_server(config: Config, say: Callable[[str], None] = print) -> Iterator[ServerInfo]:
    """Context manager that serves the model `tracking.model`.

    Args:
        config: configuration of serving and of the MLflow store.
        say: function that prints messages for the user.

    Raises:
        UserError: no version can be served, the configuration is invalid, or the cluster is too small.
        ServingError: the server could not be started.
    """
    settings, model, uri = config.serve, config.tracking.model, paths.tracking_uri(config)
    silence_libraries()
    token = _token(settings)
    if token is None and settings.host not in ("127.0.0.1", "localhost", "::1"):
        say(f"whoever reaches {settings.host} may ask: there is no serve.token_file.")
    # Each alias has its own cache, so that servers do not share one.
    kept = Path(paths.absolute_path("results", config.results)) / CACHE_DIR / settings.alias
    version = load_initial_version(model, uri, settings, kept)
    _check_port(settings)
    for name, value in SERVE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    is_ours = not ray.is_initialized() and "RAY_ADDRESS" not in os.environ
    connect()
    device, most = _room(settings)
    _start(settings)
    app = build_application(settings, model, uri, str(kept), device, most, token)
    try:
        _run(app)
        yield ServerInfo(f"http://{settings.host}:{settings.port}", device, most, version)
    finally:
        _end(is_ours)


def follow_state(told: Callable[[ServingState], None]) -> NoReturn:
    """Calls `told` with the status of the replicas every `POLL_S` seconds.

    Raises:
        ServingError: the application no longer runs.
    """
    asyncio.run(_watch(told))
    raise AssertionError


async def _watch(told: Callable[[ServingState], None]) -> NoReturn:
    watcher: DeploymentHandle = serve.get_deployment_handle(WATCHER, APP_NAME)
    while True:
        await asyncio.sleep(POLL_S)
        try:
            async with asyncio.timeout(PATIENCE_S):
                told(await watcher.state.remote())
        except (RayError, RayServeException, TimeoutError) as error:
            if not _is_served():
                raise ServingError("what was served here was ended by somebody else.") from error


def load_initial_version(model: str, uri: str, settings: ServeConfig, kept: Path) -> str:
    """Fetches the version of the alias into the model cache and returns its number.

    The request is retried a few times while the registry does not answer.

    Args:
        model: name of the registered model.
        uri: URI of the MLflow store.
        settings: serving configuration, which contains the alias.
        kept: folder of the model cache.

    Raises:
        RegistryError: the model or alias does not exist, the version has no files, or the registry does not answer.
    """
    client, shelf = connect_mlflow(uri, f"model {model}"), ModelCache(model, uri, kept)
    aliases = shelf.aliases()
    if settings.alias not in aliases:
        reference = f"models:/{model}@{settings.alias}"
        raise RegistryError(
            f"no version of {model} bears the alias {settings.alias}{available_hint(client, reference)}"
        )
    shelf.get(aliases[settings.alias])
    return aliases[settings.alias]


def _is_served() -> bool:
    try:
        return APP_NAME in serve.status().applications
    except (RayError, RayServeException, RuntimeError):
        return False


def _token(settings: ServeConfig) -> bytes | None:
    """Returns the SHA-256 digest of the token, or `None` without a token file. The token itself is not kept.

    Raises:
        ConfigError: the token file cannot be read, or does not contain a valid token.
    """
    if settings.token_file is None:
        return None
    try:
        token = Path(settings.token_file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.token_file {settings.token_file} cannot be read ({error}).") from error
    if len(token) < MIN_TOKEN_LENGTH or any(map(str.isspace, token)):
        raise ConfigError(
            f"serve.token_file {settings.token_file} holds no token of {MIN_TOKEN_LENGTH} characters or more, in one "
            "word; `openssl rand -hex 32` makes one."
        )
    return sha256(token.encode()).digest()


def _check_port(settings: ServeConfig) -> None:
    try:
        with socket.create_server((settings.host, settings.port)):
            pass
    except OSError as error:
        raise ConfigError(
            f"serve.port {settings.port} of {settings.host} cannot be listened on ({error.strerror}); choose another."
        ) from error


def _room(settings: ServeConfig) -> tuple[str, int]:
    """Returns the device and the maximum number of replicas.

    Raises:
        CapacityError: the cluster cannot hold the configured number of replicas.
    """
    nodes = potential_nodes()
    gpus = sum(int(node.gpus) for node in nodes)
    device = "cuda" if settings.device == "cuda" or (settings.device == "auto" and gpus) else "cpu"
    room = gpus if device == "cuda" else sum(int(node.cpus // settings.threads) for node in nodes)
    wanted = settings.most_replicas or settings.replicas
    if max(wanted, settings.replicas) > room:
        each = "a GPU" if device == "cuda" else f"{settings.threads} CPUs"
        name = "serve.replicas" if settings.replicas > room else "serve.most_replicas"
        raise CapacityError(f"{name} is {max(wanted, settings.replicas)}, each with {each}; the cluster holds {room}.")
    return device, room if settings.most_replicas is None else settings.most_replicas


def _start(settings: ServeConfig) -> None:
    """Starts Ray Serve.

    Raises:
        ServingError: the cluster already runs Ray Serve, or it cannot be started. A running instance has its own
            address, and its shutdown would stop other applications.
    """
    if any(one["name"] == SERVE_CONTROLLER_NAME for one in ray.util.list_named_actors(all_namespaces=True)):
        raise ServingError("this cluster runs Ray Serve already; end that first, or use another cluster.")
    try:
        serve.start(http_options=HTTPOptions(host=settings.host, port=settings.port), logging_config=LOGGING)
    except (RayError, RuntimeError) as error:
        raise ServingError(f"Ray Serve could not be started: {error}") from error


def _run(app: serve.Application) -> None:
    try:
        serve.run(app, name=APP_NAME, route_prefix="/", logging_config=LOGGING)
    except (RayError, RuntimeError) as error:
        raise ServingError(f"serving could not be started: {_why()}") from error


def _end(is_ours: bool) -> None:
    """Completes the requests in progress and stops Ray Serve. Also stops a cluster that this process started."""
    if is_ours:
        serve.delete(APP_NAME)
        ray.shutdown()
    else:
        serve.shutdown()


def _why() -> str:
    """Returns the error of the deployment that did not start, in one line."""
    found = serve.status().applications.get(APP_NAME)
    lines = [line.strip() for one in found.deployments.values() for line in one.message.splitlines()] if found else []
    told = [line for line in lines if "Error" in line]
    return told[-1] if told else "Ray Serve does not say why"
