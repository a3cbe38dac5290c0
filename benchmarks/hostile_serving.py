"""Benchmark of serving under attack: honest clients must be served as without the hostile ones."""

import asyncio
import json
import os
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from socket import create_server

import cv2
import numpy as np
import torch
from mlflow.tracking import MlflowClient

from benchmarks import machine
from benchmarks.hostile_clients import AttackPlan, attack
from benchmarks.load_generator import LoadPlan, LoadResult, MaskChecker, RequestSample, run_clients
from benchmarks.memory_monitor import monitor_memory
from segray import config as configuration
from segray.config import Config
from segray.core.errors import ServingError
from segray.core.numbers import MIB
from segray.data.images import Mask, decode_mask
from segray.data.sources import demo
from segray.models import checkpoint
from segray.models.build import build_model
from segray.serving.server import running_server
from segray.tracking.registry import register_checkpoint

MODEL, SIDE, NUM_IMAGES, HONEST_CLIENTS = "hostile", 512, 8, 16
HEALTH_RATE = 10.0
MEMORY_POLL_S = 3.0  # reading the memory of all processes takes time from the server
HONEST_NETWORK, HEALTH_NETWORK = "127.0.1", "127.0.3"
MAX_HEALTH_P99_MS, MAX_P95_RATIO = 100.0, 2.0
MAX_MEMORY_GROWTH, MEMORY_NOISE_MIB = 1.1, 64
JPEG = {"Content-Type": "image/jpeg"}


@dataclass(frozen=True)
class HostileBenchmark:
    """Settings of the benchmark.

    Attributes:
        seconds: duration of the attack, over all turns.
        turns: number of turns. Each one has a calm phase and a hostile phase.
        seed: seed of the model and of the images.
    """

    seconds: int
    turns: int
    seed: int


@dataclass(frozen=True)
class Phase:
    """Measurements of one phase.

    Attributes:
        honest: responses to the honest clients.
        health: responses of /healthz.
        memory_mib: peak memory of the server and of the clients.
        hostile: number of responses to the hostile clients, by kind of attack and status.
    """

    honest: LoadResult
    health: LoadResult
    memory_mib: int
    hostile: Mapping[str, Counter[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """A bound on a measurement.

    Attributes:
        measure: name of the measurement.
        calm, hostile: values without and with the hostile clients. `None` if it is not measured.
        limit: largest permitted value with the hostile clients.
        unit: unit of the values.
    """

    measure: str
    calm: float | None
    hostile: float
    limit: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the value is within the bound."""
        return self.hostile <= self.limit


@dataclass(frozen=True)
class HostileReport:
    """Result of the benchmark."""

    machine: dict[str, str | int]
    case: dict[str, str | int | float]
    bounds: list[Bound]
    hostile: dict[str, dict[str, int]]


def run_hostile(config: Config, settings: HostileBenchmark, log: Callable[[str], None]) -> HostileReport:
    """Measures the honest clients and /healthz in calm and hostile phases, and compares them with the bounds.

    Args:
        config: serving configuration, with one replica per core.
        settings: settings of the benchmark.
        log: callback that receives progress messages.
    """
    with tempfile.TemporaryDirectory(prefix="segray-hostile-") as folder:
        config = _register_model(config, Path(folder), settings.seed)
        with running_server(config, log) as server:
            images = [_jpeg(SIDE, settings.seed + number) for number in range(NUM_IMAGES)]
            masks = {(number, "1"): decode_mask(_post(server.url, image)) for number, image in enumerate(images)}
            plan = LoadPlan(
                f"{server.url}/v1/segment",
                [(image, JPEG) for image in images],
                HONEST_CLIENTS,
                1.0,
                network=HONEST_NETWORK,
            )
            phase_s = settings.seconds / settings.turns
            rate = _run_phase(replace(plan, seconds=max(phase_s / 4, 10.0)), server.url, masks).honest.rate
            log(f"saturated at {rate:.1f} honest requests/s; the honest clients send half of it")
            plan = replace(plan, rate=rate / 2)
            assault = AttackPlan(
                server.url, phase_s, _largest_pixels(server.url), config.serve.max_request_mib, settings.seed
            )
            log(f"the largest image that is accepted has {assault.max_pixels} pixels")
            phases = [_run_turn(plan, server.url, masks, assault, log) for _ in range(settings.turns)]
    case: dict[str, str | int | float] = {
        "model": "SegFormer B0, random weights",
        "honest": f"{HONEST_CLIENTS} clients, {SIDE}x{SIDE}",
        "rate_per_s": round(rate / 2, 2),
        "hostile_clients": 16,
        "hostile_s": settings.seconds,
        "turns": settings.turns,
        "seed": settings.seed,
        "max_image_pixels": assault.max_pixels,
        "hostile_memory_mib": " ".join(str(hostile.memory_mib) for _, hostile in phases),
    }
    return HostileReport(machine.describe_machine(torch.device("cpu")), case, _bounds(phases), _hostile_counts(phases))


def _run_turn(
    plan: LoadPlan, url: str, masks: Mapping[tuple[int, str], Mask], assault: AttackPlan, log: Callable[[str], None]
) -> tuple[Phase, Phase]:
    calm = _run_phase(replace(plan, seconds=max(assault.seconds / 3, 15.0)), url, masks)
    hostile = _run_phase(replace(plan, seconds=assault.seconds), url, masks, assault)
    for name, phase in (("calm", calm), ("hostile", hostile)):
        log(
            f"{name}: {len(phase.honest.samples)} honest requests, {len(phase.honest.failed)} failed, "
            f"p50 {phase.honest.quantile_ms(0.5):.0f} ms, p95 {phase.honest.quantile_ms(0.95):.0f} ms; "
            f"/healthz p99 {phase.health.quantile_ms(0.99):.0f} ms; {phase.memory_mib} MiB"
        )
        for sample in phase.honest.failed[:3]:
            log(f"  failed after {sample.seconds:.1f} s: {sample.status} {sample.message}")
    return calm, hostile


def _run_phase(
    plan: LoadPlan, url: str, masks: Mapping[tuple[int, str], Mask], assault: AttackPlan | None = None
) -> Phase:
    health = LoadPlan(
        f"{url}/healthz", [(b"", {})], 4, plan.seconds, rate=HEALTH_RATE, network=HEALTH_NETWORK, method="GET"
    )
    with (
        monitor_memory(os.getpid(), MEMORY_POLL_S) as peak,
        _new_process() as honest_pool,
        _new_process() as hostile_pool,
    ):
        attacking = hostile_pool.submit(_attack_at_low_priority, assault) if assault else None
        honest, health_result = honest_pool.submit(_measure, plan, health, masks).result()
        counts = attacking.result() if attacking else {}
    return Phase(honest, health_result, peak.memory // MIB, counts)


def _measure(plan: LoadPlan, health: LoadPlan, masks: Mapping[tuple[int, str], Mask]) -> tuple[LoadResult, LoadResult]:
    """Applies the honest load and polls /healthz, in one process."""

    async def run() -> tuple[LoadResult, LoadResult]:
        honest, polled = await asyncio.gather(
            run_clients(plan, MaskChecker(masks)),
            run_clients(health, None),
        )
        return honest, polled

    return asyncio.run(run())


def _attack_at_low_priority(plan: AttackPlan) -> dict[str, Counter[str]]:
    os.nice(19)  # the clients would have their own machines
    return attack(plan)


def _bounds(phases: list[tuple[Phase, Phase]]) -> list[Bound]:
    calm, hostile = (_merge([pair[index].honest for pair in phases]) for index in (0, 1))
    calm_health, health = (_merge([pair[index].health for pair in phases]) for index in (0, 1))
    first, last = phases[0][1].memory_mib, phases[-1][1].memory_mib
    p95 = calm.quantile_ms(0.95)
    return [
        Bound("honest requests failed", len(calm.failed), len(hostile.failed), 0, ""),
        Bound("honest requests p95", p95, hostile.quantile_ms(0.95), MAX_P95_RATIO * p95, "ms"),
        Bound("/healthz failed", len(calm_health.failed), len(health.failed), 0, ""),
        Bound("/healthz p99", calm_health.quantile_ms(0.99), health.quantile_ms(0.99), MAX_HEALTH_P99_MS, "ms"),
        Bound("memory, last turn", None, last, MAX_MEMORY_GROWTH * first + MEMORY_NOISE_MIB, "MiB"),
    ]


def _merge(results: list[LoadResult]) -> LoadResult:
    samples: tuple[RequestSample, ...] = tuple(sample for result in results for sample in result.samples)
    return LoadResult(samples, sum(result.seconds for result in results), results[0].begun)


def _hostile_counts(phases: list[tuple[Phase, Phase]]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for _, phase in phases:
        for name, statuses in phase.hostile.items():
            counts.setdefault(name, Counter()).update(statuses)
    return {name: dict(sorted(statuses.items())) for name, statuses in counts.items()}


def _register_model(config: Config, folder: Path, seed: int) -> Config:
    """Registers a model with random weights in a new store, and returns the configuration that serves it."""
    torch.manual_seed(seed)
    settings, classes = configuration.build({"data.crop": SIDE}), demo.demo_classes()
    saved = folder / "checkpoint"
    saved.mkdir()
    meta = checkpoint.Meta(step=0, metrics={}, dataset_digest="", versions={})
    checkpoint.snapshot(build_model(settings, classes), {}, settings, classes, meta).write(saved)
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri, uri)
    run = client.create_run(client.create_experiment("serving", str(folder / "artifacts")))
    register_checkpoint(client, run.info.run_id, saved, MODEL, [config.serve.alias])
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = config.serve.model_copy(update={"port": port})
    tracking = config.tracking.model_copy(update={"uri": uri, "model": MODEL})
    return config.model_copy(update={"results": str(folder / "results"), "serve": serve, "tracking": tracking})


def _post(url: str, image: bytes) -> bytes:
    request = urllib.request.Request(f"{url}/v1/segment", data=image, headers=JPEG)
    with urllib.request.urlopen(request, timeout=60) as response:
        return bytes(response.read())


def _largest_pixels(url: str) -> int:
    with urllib.request.urlopen(f"{url}/readyz", timeout=10) as response:
        pixels = json.loads(response.read())["max_image_pixels"]
    if not pixels:
        raise ServingError("the replicas accept no image.")
    return int(pixels)


def _jpeg(side: int, seed: int) -> bytes:
    """Returns a JPEG image of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    _, encoded = cv2.imencode(".jpg", cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC))
    return encoded.tobytes()


def _new_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))
