"""Ray Serve deployments: one version controller, the model replicas, and the gateways that route requests to them."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from segray.cluster.resources import replica_options
from segray.config import ServeConfig
from segray.models.plugins import ALLOWED_VARIABLE
from segray.serving.controller import VersionController
from segray.serving.gateway import Gateway
from segray.serving.http_server import HttpServer
from segray.serving.model_cache import ModelCache
from segray.serving.replica import Replica
from segray.serving.requests import RequestError, ResponseOptions
from segray.serving.responses import SegmentationResponse
from segray.serving.routes import build_app

CONTROLLER, REPLICA, GATEWAY = "controller", "replica", "gateway"
"""Names of the deployments in Ray Serve."""
REPLICA_NICENESS = 5
"""Niceness of the replicas relative to the gateway, which thus responds while they use all cores."""


class DeploymentClient:
    """Exposes the methods of a remote deployment as local coroutines."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._handle, name)

        async def call(*args: Any) -> Any:
            response = method.remote(*args)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()  # otherwise the replica computes a result that is never read
                raise

        return call


class ReplicaClient:
    """Exposes the stream of responses of the remote replicas as a local generator."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle.options(stream=True)

    async def segment(
        self, body: bytes, options: ResponseOptions, client: str
    ) -> AsyncGenerator[SegmentationResponse | RequestError | None]:
        """Segments an image, see `Replica.segment`. Closing the generator cancels the computation."""
        responses = self._handle.segment.remote(body, options, client)
        is_complete = False
        try:
            async for response in responses:
                is_complete = response is not None  # the gateway closes the generator at the response
                yield response
        finally:
            if not is_complete:
                responses.cancel()


class ControllerDeployment(VersionController):
    """Ray Serve deployment of the version controller."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits the constructor
        self, settings: ServeConfig, model: str, uri: str, cache_dir: str
    ) -> None:
        super().__init__(settings, ModelCache(model, uri, Path(cache_dir)))
        await self.start()


class ReplicaDeployment(Replica):
    """Ray Serve deployment of a model replica."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits the constructor
        self, settings: ServeConfig, device: str, controller: DeploymentHandle
    ) -> None:
        os.nice(REPLICA_NICENESS)
        super().__init__(settings, device, DeploymentClient(controller), _replica_id())
        await self.start()


class GatewayDeployment:
    """Ray Serve deployment of the gateway. It listens itself, because Ray Serve's proxy has no limits for slow clients.

    Raises:
        ServingError: the address is in use.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits the constructor
        self, settings: ServeConfig, replicas: DeploymentHandle, controller: DeploymentHandle, token: bytes | None
    ) -> None:
        clients = ReplicaClient(replicas), DeploymentClient(controller)
        gateway = Gateway(settings, *clients, token, _replica_id())
        gateway.start()
        self._server = HttpServer(build_app(gateway), settings)
        await self._server.start()

    def check_health(self) -> None:
        """Checks that the server runs."""
        self._server.check_health()

    async def __del__(self) -> None:  # Ray Serve awaits the destructor
        await self._server.stop()


def build_application(
    settings: ServeConfig, model: str, uri: str, cache_dir: str, device: str, max_replicas: int, token: bytes | None
) -> Application:
    """Builds the Ray Serve application.

    Args:
        settings: serving configuration.
        model: name of the registered model.
        uri: URI of the MLflow store.
        cache_dir: folder of the model cache.
        device: device of the replicas, "cpu" or "cuda".
        max_replicas: maximum number of replicas.
        token: SHA-256 digest of the bearer token. `None` disables authentication.
    """
    no_cpu: dict[str, Any] = {"num_cpus": 0}
    environment = _plugin_environment()  # the controller checks what a version names, and the replicas import it
    controller = serve.deployment(
        ControllerDeployment, name=CONTROLLER, ray_actor_options=no_cpu | environment, max_ongoing_requests=1000
    ).bind(settings, model, uri, cache_dir)
    replicas = serve.deployment(
        ReplicaDeployment,
        name=REPLICA,
        ray_actor_options=replica_options(settings, device) | environment,
        max_ongoing_requests=settings.max_pending_images,  # the replica's own queue is fair to all clients
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        health_check_period_s=2.0,
        **_scaling_options(settings, max_replicas),
    ).bind(settings, device, controller)
    gateway = serve.deployment(
        GatewayDeployment,
        name=GATEWAY,
        ray_actor_options=no_cpu | {"resources": {_node_resource(): 0.001}},  # it listens on the address of this node
        graceful_shutdown_timeout_s=settings.request_timeout_s,
    )
    return gateway.bind(settings, replicas, controller, token)


def _plugin_environment() -> dict[str, Any]:
    """Returns the actor options that pass on SEGRAY_PLUGINS, which the nodes of a cluster do not have."""
    allowed = os.environ.get(ALLOWED_VARIABLE)
    return {} if allowed is None else {"runtime_env": {"env_vars": {ALLOWED_VARIABLE: allowed}}}


def _scaling_options(settings: ServeConfig, max_replicas: int) -> dict[str, Any]:
    if max_replicas <= settings.replicas:
        return {"num_replicas": settings.replicas}
    autoscaling = AutoscalingConfig(
        min_replicas=settings.replicas,
        max_replicas=max_replicas,
        target_ongoing_requests=settings.target_ongoing_requests,
        upscale_delay_s=5.0,
        downscale_delay_s=120.0,
    )
    return {"autoscaling_config": autoscaling}


def _node_resource() -> str:
    """Returns the name of the resource that only the node of this process has."""
    node_id = ray.get_runtime_context().get_node_id()
    resources: dict[str, float] = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id)
    return next(name for name in resources if name.startswith("node:") and not name.startswith("node:__"))


def _replica_id() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)
