"""Ray Serve deployments: one version controller, the model replicas, and the gateways that route requests to them."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from segray.config import ServeConfig
from segray.serving.controller import VersionController
from segray.serving.gateway import Gateway
from segray.serving.model_cache import ModelCache
from segray.serving.replica import Replica
from segray.serving.routes import build_app

CONTROLLER, REPLICA, GATEWAY = "controller", "replica", "gateway"
"""Names of the deployments in Ray Serve."""
EXTRA_REQUESTS = 64
"""Requests above the limit that a gateway still accepts, to reject them or to answer health checks."""


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
        super().__init__(settings, device, DeploymentClient(controller), _replica_id())
        await self.start()


class GatewayDeployment:
    """Ray Serve deployment of the gateway."""

    def __init__(
        self, settings: ServeConfig, replicas: DeploymentHandle, controller: DeploymentHandle, token: bytes | None
    ) -> None:
        clients = DeploymentClient(replicas), DeploymentClient(controller)
        self._gateway = Gateway(settings, *clients, token, _replica_id())

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._gateway.start()
        return build_app(self._gateway)


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
    replica_resources = {"num_cpus": 1, "num_gpus": 1} if device == "cuda" else {"num_cpus": settings.cpus_per_replica}
    controller = serve.deployment(
        ControllerDeployment, name=CONTROLLER, ray_actor_options=no_cpu, max_ongoing_requests=1000
    ).bind(settings, model, uri, cache_dir)
    replicas = serve.deployment(
        ReplicaDeployment,
        name=REPLICA,
        ray_actor_options=replica_resources,
        max_ongoing_requests=2 * settings.max_batch_size,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        health_check_period_s=2.0,
        **_scaling_options(settings, max_replicas),
    ).bind(settings, device, controller)
    gateway = serve.deployment(
        serve.ingress()(GatewayDeployment),
        name=GATEWAY,
        ray_actor_options=no_cpu,
        max_ongoing_requests=settings.max_pending_images + EXTRA_REQUESTS,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
    )
    return gateway.bind(settings, replicas, controller, token)


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


def _replica_id() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)
