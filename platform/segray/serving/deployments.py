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

WATCHER, SEGMENTER, FRONT = "watcher", "segmenter", "front"
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

        async def call(*given: Any) -> Any:
            response = method.remote(*given)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()  # otherwise the replica computes a result that is never read
                raise

        return call


class ControllerDeployment(VersionController):
    """Ray Serve deployment of the version controller."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits the constructor
        self, settings: ServeConfig, model: str, uri: str, kept: str
    ) -> None:
        super().__init__(settings, ModelCache(model, uri, Path(kept)))
        await self.start()


class ReplicaDeployment(Replica):
    """Ray Serve deployment of a model replica."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits the constructor
        self, settings: ServeConfig, device: str, watcher: DeploymentHandle
    ) -> None:
        super().__init__(settings, device, DeploymentClient(watcher), _name())
        await self.start()


class GatewayDeployment:
    """Ray Serve deployment of the gateway."""

    def __init__(
        self, settings: ServeConfig, replicas: DeploymentHandle, watcher: DeploymentHandle, token: bytes | None
    ) -> None:
        self._desk = Gateway(settings, DeploymentClient(replicas), DeploymentClient(watcher), token, _name())

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._desk.start()
        return build_app(self._desk)


def build_application(
    settings: ServeConfig, model: str, uri: str, kept: str, device: str, most: int, token: bytes | None
) -> Application:
    """Builds the Ray Serve application.

    Args:
        settings: serving configuration.
        model: name of the registered model.
        uri: URI of the MLflow store.
        kept: folder of the model cache.
        device: device of the replicas, "cpu" or "cuda".
        most: maximum number of replicas.
        token: SHA-256 digest of the bearer token. `None` disables authentication.
    """
    light: dict[str, Any] = {"num_cpus": 0}
    heavy = {"num_cpus": 1, "num_gpus": 1} if device == "cuda" else {"num_cpus": settings.threads}
    watcher = serve.deployment(ControllerDeployment, name=WATCHER, ray_actor_options=light, max_ongoing_requests=1000)
    replicas = serve.deployment(
        ReplicaDeployment,
        name=SEGMENTER,
        ray_actor_options=heavy,
        max_ongoing_requests=2 * settings.batch,
        graceful_shutdown_timeout_s=settings.time_limit_s,
        health_check_period_s=2.0,
        **_scale(settings, most),
    )
    front = serve.deployment(
        serve.ingress()(GatewayDeployment),
        name=FRONT,
        ray_actor_options=light,
        max_ongoing_requests=settings.at_once + EXTRA_REQUESTS,
        graceful_shutdown_timeout_s=settings.time_limit_s,
    )
    watching = watcher.bind(settings, model, uri, kept)
    return front.bind(settings, replicas.bind(settings, device, watching), watching, token)


def _scale(settings: ServeConfig, most: int) -> dict[str, Any]:
    if most <= settings.replicas:
        return {"num_replicas": settings.replicas}
    scaling = AutoscalingConfig(
        min_replicas=settings.replicas,
        max_replicas=most,
        target_ongoing_requests=settings.in_flight,
        upscale_delay_s=5.0,
        downscale_delay_s=120.0,
    )
    return {"autoscaling_config": scaling}


def _name() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)
