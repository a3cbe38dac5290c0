"""Cost estimate of a sweep before it starts: training steps and time."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import monotonic

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError

from segray.cluster.resources import TrialSlots
from segray.config import Config
from segray.core.classes import Classes
from segray.data.images import resize_scale
from segray.data.manifest import Manifest
from segray.models.build import build_model
from segray.models.cost import model_costs
from segray.training.engine.train_state import build_train_state
from segray.training.losses.build import build_loss
from segray.tune.schedulers.build import grace_period, rung_steps
from segray.tune.space import apply_values, dimensions, sample

NUM_SAMPLES = 64
REFERENCE_SIZE = 256  # side of the reference image, in pixels
TRIAL_START_S = 12.0  # start-up time of a trial on two cores; less on more cores
NUM_TIMED_STEPS = 3
TIMEOUT_S = 120.0
STOPPED_FRACTION = 0.5  # fraction of trials that median stopping ends: half of them are below the median


@dataclass(frozen=True)
class SweepEstimate:
    """Estimated cost of a sweep.

    Attributes:
        trials: number of trials.
        num_concurrent: number of concurrent trials.
        steps: maximum number of training steps of all trials together.
        expected: expected number of these steps with the scheduler.
        hours: expected duration in hours; `None` if no step could be timed.
        worker_hours: expected hours of all workers together; `None` if no step could be timed.
    """

    trials: int
    num_concurrent: int
    steps: int
    expected: int
    hours: float | None
    worker_hours: float | None


def estimate_sweep(config: Config, manifest: Manifest, slots: TrialSlots) -> SweepEstimate:
    """Estimates the cost of a sweep. Times a training step on the resources of one worker."""
    trials = config.tune.max_trials
    steps = trials * config.train.steps
    expected = round(steps * expected_step_fraction(config, trials))
    step_s = _measure_step_s(config, manifest.classes, slots)
    if step_s is None:
        return SweepEstimate(trials, slots.num_concurrent, steps, expected, None, None)
    trial_hours = (expected * step_s * _relative_cost(config, manifest) + trials * TRIAL_START_S) / 3600
    hours = trial_hours / min(slots.num_concurrent, trials)
    return SweepEstimate(trials, slots.num_concurrent, steps, expected, hours, trial_hours * config.train.workers)


def expected_step_fraction(config: Config, trials: int) -> float:
    """Returns the expected fraction of steps that the scheduler runs, relative to training all trials to the end."""
    tune, last_step = config.tune, config.train.steps
    grace_steps = grace_period(config)
    if tune.scheduler == "asha":
        rungs = rung_steps(grace_steps, config.train.val_every, last_step)
        return _asha_step_fraction(rungs, tune.reduction_factor, last_step, trials)
    if tune.scheduler == "median":
        return 1 - STOPPED_FRACTION * (1 - grace_steps / last_step)
    return 1.0


def _asha_step_fraction(rungs: Sequence[int], reduction_factor: float, last_step: int, trials: int) -> float:
    """Returns the fraction of steps that successive halving runs."""
    steps, remaining, previous = 0, trials, 0
    for rung in rungs:
        steps += remaining * (rung - previous)
        remaining, previous = int(remaining / reduction_factor), rung
    steps += max(1, remaining) * (last_step - previous)
    return steps / (trials * last_step)


def _measure_step_s(config: Config, classes: Classes, slots: TrialSlots) -> float | None:
    """Returns the time (s) of a worker's part of a step with the sweep's base settings, or `None` if timing fails."""
    placement = slots.placement
    task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus, max_retries=0)(time_step)
    timing = task.remote(config, classes, placement.device, placement.threads)
    try:
        return float(ray.get(timing, timeout=TIMEOUT_S))
    except GetTimeoutError:  # no node is available yet; the task must not take resources from the trials later
        ray.cancel(timing, force=True)
    except RayError:  # for example, memory is insufficient: the trials report it
        return None
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
    state = build_train_state(config, model, torch.device(device))
    loss = build_loss(config.loss, classes.num_classes, [1] * classes.num_classes)
    num_images = -(-config.train.batch // config.train.workers)
    size = config.data.crop
    batch = {
        "image": torch.zeros(num_images, 3, size, size, dtype=torch.uint8),
        "mask": torch.zeros(num_images, size, size, dtype=torch.uint8),
    }
    times, start = [], monotonic()
    batches = [batch] * (1 + NUM_TIMED_STEPS)
    for _ in state.train_steps(state.training_model, loss, batches, ignore_id=classes.ignore_id):
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(monotonic() - start)
        start = monotonic()
    return median(times[1:])  # the first step is a warm-up


def _relative_cost(config: Config, manifest: Manifest) -> float:
    """Returns the mean cost of a trial's step relative to one with the base settings, including validations."""
    num_classes = manifest.classes.num_classes
    reference_macs: dict[str, float] = {}

    def step_macs(trial: Config) -> float:
        key = f"{trial.model.variant} {trial.model.encoder} {trial.model.head}"
        if key not in reference_macs:
            reference_macs[key] = model_costs(trial, num_classes, REFERENCE_SIZE, REFERENCE_SIZE)[-1].macs
        return reference_macs[key] * (trial.data.crop / REFERENCE_SIZE) ** 2 * trial.train.batch

    space, seed = dimensions(config), config.tune.seed
    trials = (apply_values(config, sample(space, seed, number)) for number in range(NUM_SAMPLES))
    mean_cost = fmean(step_macs(trial) for trial in trials) / step_macs(config)
    return mean_cost * (1 + _relative_validation_cost(config, manifest))


def _relative_validation_cost(config: Config, manifest: Manifest) -> float:
    """Returns the validation time relative to the training time, by pixels. A forward pass costs a third of a step."""
    val = manifest.split(config.data.val_split)
    height, width = val.mean_height, val.mean_width
    scale = min(1.0, resize_scale(round(height), round(width), config.data.short_side))
    pixels = val.rows * height * width * scale**2 / 3
    return pixels / (config.train.val_every * config.train.batch * config.data.crop**2)
