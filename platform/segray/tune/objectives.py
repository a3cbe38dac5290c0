"""Objectives of a sweep: metrics that trials report, and costs of a model that are known before training."""

from statistics import median

import numpy as np
import ray
import torch

from segray.cluster.resources import WorkerResources
from segray.config import Config
from segray.core.classes import Classes
from segray.core.errors import ConfigError, did_you_mean, format_list
from segray.data.manifest import Manifest
from segray.evaluation.metrics.scores import scores_from_confusion
from segray.inference.timing import time_interleaved
from segray.models.build import build_model
from segray.models.cost import model_costs

PARAMETERS, GMAC, LATENCY = "cost/parameters", "cost/gmac", "cost/latency_ms"
COSTS = (PARAMETERS, GMAC, LATENCY)
TIMING_ROUNDS = 9


def available_metrics(config: Config, manifest: Manifest) -> tuple[str, ...]:
    """Returns the metrics that a sweep can use as objectives."""
    names = manifest.classes.names
    counts = np.eye(len(names), dtype=np.int64)
    return (*scores_from_confusion(counts, names).as_metrics("val"), "train/loss", *COSTS)


def validate_objectives(config: Config, manifest: Manifest) -> None:
    """Validates the objectives of a sweep.

    Raises:
        ConfigError: an objective is not available (the message lists those that are), the first one is a cost, or one
            is repeated.
    """
    known = available_metrics(config, manifest)
    for name in config.tune.metrics:
        if name not in known:
            near = did_you_mean(name, known)
            raise ConfigError(
                f"tune.metrics is {name}, which no trial reports{near or ';'} there are:{format_list(known)}"
            )
    if config.tune.metrics[0] in COSTS:
        raise ConfigError(
            f"tune.metrics begins with {config.tune.metrics[0]}, which training does not change; expected what is "
            "learned first, e.g. '[val/miou, cost/latency_ms]'."
        )
    if len(set(config.tune.metrics)) < len(config.tune.metrics):
        raise ConfigError(f"tune.metrics is {', '.join(config.tune.metrics)}; expected each metric once.")


def measure_costs(
    config: Config, classes: Classes, wanted: tuple[str, ...], placement: WorkerResources
) -> dict[str, float]:
    """Measures the costs of a model: its parameters, GMAC and latency (ms) on a worker for an image of data.crop.

    Args:
        config: settings of the model.
        classes: classes of the model.
        wanted: names of metrics; names that are not costs are ignored.
        placement: resources of a worker.

    Returns:
        Cost by metric name.
    """
    found: dict[str, float] = {}
    side = config.data.crop
    if PARAMETERS in wanted or GMAC in wanted:
        whole = model_costs(config, classes.num_classes, side, side)[-1]
        found |= {PARAMETERS: float(whole.parameters), GMAC: whole.macs / 1e9}
    if LATENCY in wanted:
        task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus)(measure_latency_ms)
        found[LATENCY] = float(ray.get(task.remote(config, classes, placement.device, placement.threads)))
    return {name: value for name, value in found.items() if name in wanted}


def measure_latency_ms(config: Config, classes: Classes, device: str, threads: int) -> float:
    """Returns the median time (ms) of a forward pass for one image of data.crop, from image to scores."""
    torch.set_num_threads(threads)
    model = build_model(config, classes).eval().to(device)
    image = torch.zeros(1, 3, config.data.crop, config.data.crop, dtype=torch.uint8, device=device)
    with torch.inference_mode():
        (times,) = time_interleaved([lambda: model(image)], TIMING_ROUNDS, torch.device(device))
    return 1000 * median(times)
