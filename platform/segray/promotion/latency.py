"""Latencies of versions, measured in a task with the resources and the settings of a replica of the server."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import ray
import torch
from ray.exceptions import RayError

from segray.cluster.connect import connect
from segray.cluster.nodes import potential_nodes
from segray.cluster.resources import replica_device, replica_options, require_replica_node
from segray.config import ServeConfig
from segray.core.errors import CapacityError, DataError, SegrayError, root_cause
from segray.data.images import Pixels, decode_image
from segray.inference.serving_predictor import ServingPredictor
from segray.inference.timing import time_interleaved
from segray.tracking.integrity import CHECKPOINT_FILES

TIMEOUT_S = 1800.0
"""Timeout in seconds of the measurement, including the start of a node by the autoscaler."""


@dataclass(frozen=True)
class _LatencyTask:
    """Task of the measurement.

    Attributes:
        models: content of the checkpoint files of each version, because other nodes cannot read the download.
        images: encoded images.
        settings: serving configuration.
        device: "cpu" or "cuda".
    """

    models: tuple[dict[str, bytes], ...]
    images: tuple[bytes, ...]
    settings: ServeConfig
    device: str


def measure_latencies(folders: Sequence[Path], images: Sequence[bytes], settings: ServeConfig) -> list[float]:
    """Returns each version's median time (ms) for an image, from pixels to mask, on a node that would serve it.

    All versions run in the same task. They alternate after each image, so a temporary slowdown of the machine affects
    all of them.

    Args:
        folders: checkpoint folder of each version.
        images: encoded images.
        settings: serving configuration, of which device, CPUs per replica, precision and sliding windows apply.

    Raises:
        CapacityError: no node of the cluster could hold a replica, or none is free within `TIMEOUT_S`.
        DataError: there is no image.
    """
    if not images:
        raise DataError("no image of the split can be decoded; the latency cannot be measured.")
    connect()
    nodes = potential_nodes()
    device = replica_device(settings, nodes)
    require_replica_node(settings, device, nodes)
    models = tuple({name: (folder / name).read_bytes() for name in CHECKPOINT_FILES} for folder in folders)
    task = _LatencyTask(models, tuple(images), settings, device)
    result = ray.remote(**replica_options(settings, device))(_time_models).remote(task)
    if not ray.wait([result], timeout=TIMEOUT_S)[0]:
        needed = "a GPU" if device == "cuda" else f"{settings.cpus_per_replica} CPUs"
        raise CapacityError(
            f"the latency could not be measured within {TIMEOUT_S:g} s: no node with {needed} became free; stop other "
            "work on the cluster, or add nodes."
        )
    try:
        latencies: list[float] = ray.get(result)
    except RayError as error:
        raise root_cause(error) or SegrayError(f"the latency could not be measured: {error}") from error
    return latencies


def _time_models(task: _LatencyTask) -> list[float]:
    """Returns the median time (ms) of each version, in a task of the cluster."""
    torch.set_num_threads(task.settings.cpus_per_replica)  # as a replica does
    images = [decode_image(image) for image in task.images]
    with ExitStack() as folders:
        predictors = []
        for files in task.models:
            folder = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="segray-model-")))
            for name, content in files.items():
                (folder / name).write_bytes(content)
            predictors.append(_TimedPredictor(ServingPredictor(folder, task.device, task.settings), cycle(images)))
    # The masks are on the CPU.
    seconds = time_interleaved(predictors, len(images), torch.device("cpu"))
    return [median(series) * 1000 for series in seconds]


@dataclass(frozen=True)
class _TimedPredictor:
    predictor: ServingPredictor
    images: Iterator[Pixels]

    def __call__(self) -> None:
        self.predictor.predict_batch([next(self.images)])
