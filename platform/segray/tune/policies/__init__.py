"""Who goes on: after each validation a policy lets a trial go on, pauses it, or stops it."""

from segray.config import Config
from segray.tune.policies.halving import Halving
from segray.tune.policies.median import Median
from segray.tune.policies.never import Never
from segray.tune.policies.population import Population
from segray.tune.policies.verdict import Policy, Verdict
from segray.tune.space import dimensions

GRACE = 0.15
"""Share of a run before a curve says enough to compare it."""

__all__ = ["Policy", "Verdict", "grace_of", "interval_of", "policy_of", "rungs_of"]


def policy_of(settings: Config) -> Policy:
    """Returns the policy of a sweep."""
    tune, train = settings.tune, settings.train
    grace = grace_of(settings)
    if tune.scheduler == "asha":
        return Halving(rungs_of(grace, train.val_every, train.steps), tune.reduction, train.steps)
    if tune.scheduler == "median":
        return Median(grace, train.steps)
    if tune.scheduler == "pbt":
        return Population(
            dimensions(settings), interval_of(settings), train.steps, tune.quantile, tune.resample, tune.seed
        )
    return Never()


def grace_of(settings: Config) -> int:
    """Returns the steps before a trial may be paused or stopped."""
    return settings.tune.grace or max(1, round(GRACE * settings.train.steps))


def interval_of(settings: Config) -> int:
    """Returns the steps between two looks of population based training."""
    return settings.tune.interval or max(1, settings.train.steps // 10)


def rungs_of(grace: int, every: int, steps: int) -> tuple[int, ...]:
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
