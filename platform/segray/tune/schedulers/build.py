"""Construction of trial schedulers, which continue, pause or stop a trial after each validation."""

from segray.config import Config
from segray.tune.schedulers.asha import AsyncSuccessiveHalving
from segray.tune.schedulers.base import NoEarlyStopping, Scheduler, SchedulerDecision
from segray.tune.schedulers.median import MedianStopping
from segray.tune.schedulers.pbt import PopulationBasedTraining
from segray.tune.space import dimensions

GRACE = 0.15
"""Fraction of a run after which learning curves can be compared."""

__all__ = ["Scheduler", "SchedulerDecision", "build_scheduler", "grace_period", "perturbation_interval", "rung_steps"]


def build_scheduler(settings: Config) -> Scheduler:
    """Builds the scheduler of a sweep."""
    tune, train = settings.tune, settings.train
    grace = grace_period(settings)
    if tune.scheduler == "asha":
        return AsyncSuccessiveHalving(rung_steps(grace, train.val_every, train.steps), tune.reduction, train.steps)
    if tune.scheduler == "median":
        return MedianStopping(grace, train.steps)
    if tune.scheduler == "pbt":
        return PopulationBasedTraining(
            dimensions(settings), perturbation_interval(settings), train.steps, tune.quantile, tune.resample, tune.seed
        )
    return NoEarlyStopping()


def grace_period(settings: Config) -> int:
    """Returns the number of steps before a trial may be paused or stopped."""
    return settings.tune.grace or max(1, round(GRACE * settings.train.steps))


def perturbation_interval(settings: Config) -> int:
    """Returns the number of steps between two perturbations of population based training."""
    return settings.tune.interval or max(1, settings.train.steps // 10)


def rung_steps(grace: int, every: int, steps: int) -> tuple[int, ...]:
    """Returns the steps of the rungs. Each is twice the previous one, rounded up to a validation.

    There is no rung after half of a run, apart from the first. A trial that reaches it costs little more to finish, and
    the best trials are compared by their final values.

    Args:
        grace: number of steps before the first rung.
        every: number of steps between two validations.
        steps: number of steps of a complete trial.
    """
    found: list[int] = []
    rung = grace
    while rung <= steps // 2 or not found:
        at = -(-rung // every) * every
        if at >= steps:
            break
        if at not in found:
            found.append(at)
        rung *= 2
    return tuple(found)
