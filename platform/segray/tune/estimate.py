"""Cost estimate of a sweep before it starts: training steps and time."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import ray
import torch
from ray.exceptions import RayError

from segray.cluster.resources import TrialSlots
from segray.config import Config
from segray.core.classes import Classes
from segray.data.manifest import Manifest
from segray.models.build import build_model
from segray.models.cost import model_costs
from segray.training.engine.train_state import build_train_state
from segray.training.losses.build import build_loss
from segray.tune.schedulers.build import grace_period, rung_steps
from segray.tune.space import apply_values, dimensions, sample

SAMPLES = 64
REFERENCE = 256  # side of the reference image, in pixels
START_S = 12.0  # start-up time of a trial on two cores; less on more cores
TURNS = 3
PATIENCE_S = 120.0
MIN_STOPPED = 0.5  # fraction of trials that median stopping ends: half of them are below the median


@dataclass(frozen=True)
class SweepEstimate:
    """Estimated cost of a sweep.

    Attributes:
        trials: number of trials.
        at_once: number of concurrent trials.
        steps: maximum number of training steps of all trials together.
        expected: expected number of these steps with the scheduler.
        hours: expected duration in hours; `None` if no step could be timed.
        worker_hours: expected hours of all workers together; `None` if no step could be timed.
    """

    trials: int
    at_once: int
    steps: int
    expected: int
    hours: float | None
    worker_hours: float | None


def estimate_sweep(config: Config, manifest: Manifest, slots: TrialSlots) -> SweepEstimate:
    """Estimates the cost of a sweep. Times a training step on the resources of one worker."""
    trials = config.tune.max_trials
    steps = trials * config.train.steps
    expected = round(steps * expected_step_fraction(config, trials))
    seconds = _seconds_of_step(config, manifest.classes, slots)
    if seconds is None:
        return SweepEstimate(trials, slots.num_concurrent, steps, expected, None, None)
    busy = expected * seconds * _relative_cost(config, manifest) + trials * START_S
    hours = busy / min(slots.num_concurrent, trials) / 3600
    return SweepEstimate(trials, slots.num_concurrent, steps, expected, hours, busy * config.train.workers / 3600)


def expected_step_fraction(config: Config, trials: int) -> float:
    """Returns the expected fraction of steps that the scheduler runs, relative to training all trials to the end."""
    tune, last = config.tune, config.train.steps
    grace = grace_period(config)
    if tune.scheduler == "asha":
        return _halved(rung_steps(grace, config.train.val_every, last), tune.reduction, last, trials)
    if tune.scheduler == "median":
        return 1 - MIN_STOPPED * (1 - grace / last)
    return 1.0


def _halved(rungs: Sequence[int], reduction: float, last: int, trials: int) -> float:
    """Returns the fraction of steps that successive halving runs."""
    made, there, before = 0.0, trials, 0
    for rung in rungs:
        made += there * (rung - before)
        there, before = int(there / reduction), rung
    made += max(1, there) * (last - before)
    return made / (trials * last)


def _seconds_of_step(config: Config, classes: Classes, slots: TrialSlots) -> float | None:
    """Returns the time (s) of a worker's part of a step with the sweep's base settings, or `None` if timing fails."""
    place = slots.placement
    task = ray.remote(num_cpus=place.cpus, num_gpus=place.gpus, max_retries=0)(time_step)
    timing = task.remote(config, classes, place.device, place.threads)
    try:
        return float(ray.get(timing, timeout=PATIENCE_S))
    except RayError:  # no node yet, or too little memory: the sweep reports it
        ray.cancel(timing, force=True)
        return None


def time_step(config: Config, classes: Classes, device: str, threads: int) -> float:
    """Returns the median time (s) of a worker's part of a step, on synthetic images.

    Args:
        config: settings of the run.
        classes: classes of its dataset.
        device: "cpu" or "cuda".
        threads: number of CPU threads.
    """
    torch.set_num_threads(threads)
    model = build_model(config, classes)
    trained = build_train_state(config, model, torch.device(device))
    loss = build_loss(config.loss, classes.num_classes, [1] * classes.num_classes)
    images = -(-config.train.batch // config.train.workers)
    side = config.data.crop
    batch = {
        "image": torch.zeros(images, 3, side, side, dtype=torch.uint8),
        "mask": torch.zeros(images, side, side, dtype=torch.uint8),
    }
    times, began = [], monotonic()
    for _ in trained.train_steps(trained.model, loss, [batch] * (1 + TURNS), ignore_id=classes.ignore_id):
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(monotonic() - began)
        began = monotonic()
    return sorted(times[1:])[TURNS // 2]


def _relative_cost(config: Config, manifest: Manifest) -> float:
    """Returns the mean cost of a trial's step relative to one with the base settings, including validations."""
    classes = manifest.classes.num_classes
    drawn_configs = [apply_values(config, sample(dimensions(config), config.tune.seed, n)) for n in range(SAMPLES)]
    known: dict[str, float] = {}

    def macs(one: Config) -> float:
        key = f"{one.model.variant} {one.model.encoder} {one.model.head}"
        if key not in known:
            known[key] = model_costs(one, classes, REFERENCE, REFERENCE)[-1].macs
        return known[key] * (one.data.crop / REFERENCE) ** 2

    mean = sum(macs(one) * one.train.batch for one in drawn_configs) / SAMPLES / (macs(config) * config.train.batch)
    return mean * (1 + _share_of_validation(config, manifest))


def _share_of_validation(config: Config, manifest: Manifest) -> float:
    """Returns the validation time relative to the training time, by pixels. A forward pass costs a third of a step."""
    val = manifest.split(config.data.val_split)
    height, width = val.mean_height, val.mean_width
    scale = min(1.0, config.data.short_side / min(height, width)) if config.data.short_side else 1.0
    pixels = val.rows * height * width * scale**2 / 3
    return pixels / (config.train.val_every * config.train.batch * config.data.crop**2)
