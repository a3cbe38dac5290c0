"""Benchmark of serving. Baselines are a loop over the Predictor and MLflow's server, with the same model and cores."""

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from socket import create_server
from statistics import median
from time import perf_counter, sleep

import cv2
import numpy as np
import torch

from benchmarks import machine
from benchmarks.interleave import BenchmarkReport, Row, rate_row
from benchmarks.load_generator import LoadPlan, LoadResult, apply_load
from benchmarks.memory_monitor import monitor_memory
from segray.cluster.connect import available_cpus
from segray.config import Config
from segray.core.errors import ServingError
from segray.core.numbers import MIB
from segray.data.images import decode_image, encode_mask
from segray.inference.predictor import Predictor
from segray.serving.server import running_server
from segray.tracking.registry import open_checkpoint

CLIENTS = 16
JPEG = {"Content-Type": "image/jpeg"}
START_TIMEOUT_S = 120.0
IMAGES = 8


@dataclass(frozen=True)
class ServingBenchmark:
    """Settings of the benchmark.

    Attributes:
        sizes: sides of the images in px.
        seconds: duration of a turn.
        turns: number of turns of each candidate.
        requests: number of requests of the long run, in which memory is monitored; 0 skips it.
    """

    sizes: Sequence[int]
    seconds: float
    turns: int
    requests: int


def run_benchmark(
    config: Config, version: str, settings: ServingBenchmark, log: Callable[[str], None]
) -> BenchmarkReport:
    """Compares the images per second with the peers, and measures latency at half of that rate, and memory.

    Args:
        config: serving configuration, with one replica per core, so that all candidates use the same cores.
        version: version of the model.
        settings: settings of the benchmark.
        log: callback that receives progress messages.
    """
    uri, name = str(config.tracking.uri), config.tracking.model
    rows = list[Row]()
    case: dict[str, str | int] = {"model": name, "version": version, "clients": CLIENTS, "turns": settings.turns}
    with (
        open_checkpoint(f"models:/{name}/{version}", uri) as folder,
        running_server(config, log) as server,
        _mlflow(name, version, uri) as mlflow_url,
        _new_process() as pool,
    ):
        loop = pool.submit(_load_predictor, folder, available_cpus())
        loop.result()
        for size in settings.sizes:
            log(f"images of {size}x{size} ...")
            images = [_jpeg(size, seed) for seed in range(IMAGES)]
            rows += _compare(f"{server.url}/v1/segment", mlflow_url, pool, images, size, settings)
            saturated = rows[-1].ours
            half_load = _run_half_load(f"{server.url}/v1/segment", images, saturated, settings.seconds)
            case |= {
                f"p50_{size}_ms": round(half_load.quantile_ms(0.5)),
                f"p95_{size}_ms": round(half_load.quantile_ms(0.95)),
            }
            case |= {f"failed_{size}": len(half_load.failed)}
        if settings.requests:
            case |= _run_long(f"{server.url}/v1/segment", settings, log)
    return BenchmarkReport(machine.describe_machine(torch.device("cpu")), case, rows)


def _compare(
    ours: str, theirs: str, pool: ProcessPoolExecutor, images: Sequence[bytes], size: int, settings: ServingBenchmark
) -> list[Row]:
    """Returns the rows of one image size. All candidates are warmed up and take alternating turns."""
    bodies = [(image, JPEG) for image in images]
    json_bodies = [(_to_json(image), {"Content-Type": "application/json"}) for image in images]

    def measure_rate(url: str, request_bodies: Sequence[tuple[bytes, dict[str, str]]]) -> float:
        with _new_process() as process:
            load = process.submit(apply_load, LoadPlan(url, request_bodies, CLIENTS, settings.seconds)).result()
        if load.failed:
            raise ServingError(f"{url} returned status {load.failed[0].status}: {load.failed[0].message}")
        return load.rate

    candidates: list[Callable[[], float]] = [
        lambda: measure_rate(ours, bodies),
        lambda: pool.submit(_run_predictor_loop, images, settings.seconds).result(),
        lambda: measure_rate(theirs, json_bodies),
    ]
    for candidate in candidates:
        candidate()
    series = list(zip(*([candidate() for candidate in candidates] for _ in range(settings.turns)), strict=True))
    peer_series = zip(("bare Predictor loop", "mlflow models serve"), series[1:], strict=True)
    return [rate_row(f"serve_requests {size}x{size}", peer, series[0], rates, "/s") for peer, rates in peer_series]


def _run_half_load(url: str, images: Sequence[bytes], saturated: float, seconds: float) -> LoadResult:
    """Applies half of the saturating load, with many clients, and returns the result."""
    plan = LoadPlan(url, [(image, JPEG) for image in images], 100, max(seconds, 20.0), rate=saturated / 2)
    with _new_process() as pool:
        return pool.submit(apply_load, plan).result()


def _run_long(url: str, settings: ServingBenchmark, log: Callable[[str], None]) -> dict[str, str | int]:
    """Returns the change of memory and latency over many requests of mixed sizes, measured in ten parts."""
    bodies = [(_jpeg(size, seed), JPEG) for seed in range(IMAGES) for size in (64, 96, 128, 192, 256)]
    memory_mib, p95_ms = list[int](), list[int]()
    for tenth in range(10):
        with monitor_memory(os.getpid()) as peak, _new_process() as pool:
            load = pool.submit(
                apply_load, LoadPlan(url, bodies, CLIENTS, 3600.0, max_requests=settings.requests // 10)
            ).result()
        memory_mib.append(peak.memory // MIB)
        p95_ms.append(round(load.quantile_ms(0.95)))
        num_requests = (tenth + 1) * settings.requests // 10
        log(f"{num_requests} requests, {len(load.failed)} failed, p95 {p95_ms[-1]} ms, {memory_mib[-1]} MiB peak")
    return {
        "requests": settings.requests,
        "p95_first_tenths_ms": int(median(p95_ms[1:4])),
        "p95_last_tenths_ms": int(median(p95_ms[-3:])),
        "memory_first_tenths_mib": int(median(memory_mib[1:4])),
        "memory_last_tenths_mib": int(median(memory_mib[-3:])),
    }


@contextmanager
def _mlflow(name: str, version: str, uri: str) -> Iterator[str]:
    """Starts MLflow's server for the version, with one worker per core, and yields its URL."""
    with create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = ["models", "serve", "-m", f"models:/{name}/{version}", "--env-manager", "local", "--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--workers", str(available_cpus())]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow searches for uvicorn in PATH
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1", "PATH": path}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/ping", process)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    start = perf_counter()
    while perf_counter() - start < START_TIMEOUT_S and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            sleep(0.5)
    raise ServingError(f"mlflow models serve does not respond at {url}.")


def _new_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


_PREDICTORS: list[Predictor] = []


def _load_predictor(folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    _PREDICTORS.append(Predictor(folder))


def _run_predictor_loop(images: Sequence[bytes], seconds: float) -> float:
    """Returns the images per second of sequential prediction from JPEG to PNG."""
    start, count = perf_counter(), 0
    while perf_counter() - start < seconds:
        encode_mask(_PREDICTORS[0](decode_image(images[count % len(images)])))
        count += 1
    return count / (perf_counter() - start)


def _jpeg(side: int, seed: int) -> bytes:
    """Returns a JPEG image of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    _, encoded = cv2.imencode(".jpg", cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC))
    return encoded.tobytes()


def _to_json(image: bytes) -> bytes:
    return json.dumps({"dataframe_records": [{"image": base64.b64encode(image).decode()}]}).encode()
