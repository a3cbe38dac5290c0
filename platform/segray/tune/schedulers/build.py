"""Who goes on: after each validation a policy lets a trial go on, pauses it, or stops it."""

from segray.config import Config
from segray.tune.schedulers.asha import AsyncSuccessiveHalving
from segray.tune.schedulers.base import NoEarlyStopping, Scheduler, SchedulerDecision
from segray.tune.schedulers.median import MedianStopping
from segray.tune.schedulers.pbt import PopulationBasedTraining
from segray.tune.space import dimensions

GRACE = 0.15
"""Share of a run before a curve says enough to compare it."""

__all__ = ["Scheduler", "SchedulerDecision", "build_scheduler", "grace_period", "perturbation_interval", "rung_steps"]


def build_scheduler(settings: Config) -> Scheduler:
    """Returns the policy of a sweep."""
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
    """Returns the steps before a trial may be paused or stopped."""
    return settings.tune.grace or max(1, round(GRACE * settings.train.steps))


def perturbation_interval(settings: Config) -> int:
    """Returns the steps between two looks of population based training."""
    return settings.tune.interval or max(1, settings.train.steps // 10)


def rung_steps(grace: int, every: int, steps: int) -> tuple[int, ...]:
    """Returns the steps of the rungs: each twice as far as the one before, at validations.

    Behind the half of a run there is none: whoever came so far costs little more, and the best are to be told apart by
    what they end at.

    Args:
        grace: steps before the first.
        every: steps between two validations.
        steps: of a whole trial.
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
