"""Objectives of a sweep: metrics that trials report, and costs of a model that are known before training."""

from statistics import median

import ray
import torch
from ray.exceptions import RayError

from segray.cluster.resources import WorkerResources
from segray.config import Config
from segray.core.classes import Classes
from segray.core.errors import ConfigError, TrainingError, cause_summary, did_you_mean, format_list, root_cause
from segray.data.manifest import Manifest
from segray.inference.timing import time_interleaved
from segray.models.build import build_model
from segray.models.cost import model_costs
from segray.training.score import DEFAULT_SCORE, available_scores, validate_score_class

PARAMETERS, GMAC, LATENCY = "cost/parameters", "cost/gmac", "cost/latency_ms"
COSTS = (PARAMETERS, GMAC, LATENCY)
TIMING_ROUNDS = 9


def available_metrics(config: Config, manifest: Manifest) -> tuple[str, ...]:
    """Returns the metrics that a sweep can use as objectives."""
    return (*available_scores(manifest.classes.names), *COSTS)


def validate_objectives(config: Config, manifest: Manifest) -> None:
    """Validates the objectives of a sweep.

    Raises:
        ConfigError: an objective is not available (the message lists those that are) or is the IoU of a class that the
            validation split does not contain, the first one is a cost, one is repeated, or `train.score` is another
            metric than the first one.
    """
    available, metrics = available_metrics(config, manifest), config.tune.metrics
    for name in metrics:
        if name not in available:
            hint = did_you_mean(name, available) or "."
            raise ConfigError(
                f"tune.metrics contains {name}, which no trial reports{hint} Available metrics:{format_list(available)}"
            )
        validate_score_class("tune.metrics", name, config, manifest)
    if metrics[0] in COSTS:
        raise ConfigError(
            f"the first of tune.metrics is {metrics[0]}, which does not depend on training; expected a metric of the "
            "training or the validation first, e.g. '[val/miou, cost/latency_ms]'."
        )
    if len(set(metrics)) < len(metrics):
        raise ConfigError(f"tune.metrics is {', '.join(metrics)}; expected each metric once.")
    if config.train.score not in (DEFAULT_SCORE, metrics[0]):
        raise ConfigError(
            f"train.score is {config.train.score}, and the first of tune.metrics is {metrics[0]}; a sweep expects the "
            f"same metric in both: set tune.metrics to {config.train.score}, or leave train.score out."
        )


def with_objective_score(config: Config) -> Config:
    """Returns the settings of a sweep, whose trials keep and register the checkpoint with the best first objective."""
    train = config.train.model_copy(update={"score": config.tune.metrics[0]})
    return config.model_copy(update={"train": train})


def measure_costs(
    config: Config, classes: Classes, names: tuple[str, ...], placement: WorkerResources
) -> dict[str, float]:
    """Measures the costs of a model: its parameters, GMAC and latency (ms) on a worker for an image of data.crop.

    Args:
        config: settings of the model.
        classes: classes of the model.
        names: names of metrics; names that are not costs are ignored.
        placement: resources of a worker.

    Returns:
        Cost by metric name.
    """
    costs: dict[str, float] = {}
    size = config.data.crop
    if PARAMETERS in names or GMAC in names:
        total = model_costs(config, classes.num_classes, size, size)[-1]
        costs |= {PARAMETERS: float(total.parameters), GMAC: total.macs / 1e9}
    if LATENCY in names:
        task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus)(measure_latency_ms)
        try:
            costs[LATENCY] = float(ray.get(task.remote(config, classes, placement.device, placement.threads)))
        except RayError as error:
            raise root_cause(error) or TrainingError(
                f"{LATENCY} of {config.model.variant} at {size} px cannot be measured ({cause_summary(error)})."
            ) from error
    return {name: value for name, value in costs.items() if name in names}


def measure_latency_ms(config: Config, classes: Classes, device: str, threads: int) -> float:
    """Returns the median time (ms) of a forward pass for one image of data.crop, from image to scores."""
    torch.set_num_threads(threads)
    model = build_model(config, classes).eval().to(device)
    image = torch.zeros(1, 3, config.data.crop, config.data.crop, dtype=torch.uint8, device=device)
    with torch.inference_mode():
        (times,) = time_interleaved([lambda: model(image)], TIMING_ROUNDS, torch.device(device))
    return 1000 * median(times)
