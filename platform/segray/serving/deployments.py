"""What Ray Serve runs: one watcher, replicas of the model, and fronts that take requests to them."""

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
"""Requests beyond the limit that a front still hears, to send them away or to say how it is."""


class DeploymentClient:
    """The methods of a deployment, as if it were here."""

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
                response.cancel()  # else it is computed for nobody
                raise

        return call


class ControllerDeployment(VersionController):
    """The watcher."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: ServeConfig, model: str, uri: str, kept: str
    ) -> None:
        super().__init__(settings, ModelCache(model, uri, Path(kept)))
        await self.start()


class ReplicaDeployment(Replica):
    """A replica of the model."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: ServeConfig, device: str, watcher: DeploymentHandle
    ) -> None:
        super().__init__(settings, device, DeploymentClient(watcher), _name())
        await self.start()


class GatewayDeployment:
    """A front."""

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
    """Returns what Ray Serve is to run.

    Args:
        settings: of serving.
        model: registered model.
        uri: MLflow store.
        kept: folder in which versions are kept.
        device: "cpu" or "cuda".
        most: replicas at most.
        token: SHA-256 of the bearer token; none lets everybody in.
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
