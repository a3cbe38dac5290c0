"""Construction of trial schedulers, which continue, pause or stop a trial after each validation."""

from segray.config import Config
from segray.tune.schedulers.asha import AsyncSuccessiveHalving
from segray.tune.schedulers.base import NoEarlyStopping, Scheduler, SchedulerDecision
from segray.tune.schedulers.median import MedianStopping
from segray.tune.schedulers.pbt import PopulationBasedTraining
from segray.tune.space import dimensions

DEFAULT_GRACE_FRACTION = 0.15
"""Fraction of a run after which learning curves can be compared."""

__all__ = ["Scheduler", "SchedulerDecision", "build_scheduler", "grace_period", "perturbation_interval", "rung_steps"]


def build_scheduler(settings: Config) -> Scheduler:
    """Builds the scheduler of a sweep."""
    tune, train = settings.tune, settings.train
    grace_steps = grace_period(settings)
    if tune.scheduler == "asha":
        rungs = rung_steps(grace_steps, train.val_every, train.steps)
        return AsyncSuccessiveHalving(rungs, tune.reduction_factor, train.steps)
    if tune.scheduler == "median":
        return MedianStopping(grace_steps, train.steps)
    if tune.scheduler == "pbt":
        return PopulationBasedTraining(
            dimensions(settings),
            perturbation_interval(settings),
            train.steps,
            tune.quantile_fraction,
            tune.resample_prob,
            tune.seed,
        )
    return NoEarlyStopping()


def grace_period(settings: Config) -> int:
    """Returns the number of steps before a trial may be paused or stopped."""
    return settings.tune.grace_steps or max(1, round(DEFAULT_GRACE_FRACTION * settings.train.steps))


def perturbation_interval(settings: Config) -> int:
    """Returns the number of steps between two perturbations of population based training."""
    return settings.tune.perturbation_interval or max(1, settings.train.steps // 10)


def rung_steps(grace_steps: int, val_every: int, steps: int) -> tuple[int, ...]:
    """Returns the steps of the rungs. Each is twice the previous one, rounded up to a validation.

    There is no rung after half of a run, apart from the first. A trial that reaches it costs little more to finish, and
    the best trials are compared by their final values.

    Args:
        grace_steps: number of steps before the first rung.
        val_every: number of steps between two validations.
        steps: number of steps of a complete trial.
    """
    rungs: list[int] = []
    target = grace_steps
    while target <= steps // 2 or not rungs:
        rung = -(-target // val_every) * val_every
        if rung >= steps:
            break
        if rung not in rungs:
            rungs.append(rung)
        target *= 2
    return tuple(rungs)
