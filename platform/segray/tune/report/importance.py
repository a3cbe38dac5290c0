"""Importance of settings: the fraction of the objective's variance that each setting explains.

Uses fANOVA (Hutter et al., 2014), a random forest over the trials, as implemented in Optuna. The estimate is uncertain
for few trials. It is therefore repeated on bootstrap samples of the trials, and the result has a mean and a spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import create_trial

from segray.tune.search import distribution
from segray.tune.space import Dimension
from segray.tune.trial import Trial

MIN_TRIALS = 8
DRAWS, TREES = 16, 32


@dataclass(frozen=True)
class Importance:
    """Importance of a setting.

    Attributes:
        key: dotted key of the setting.
        share: explained fraction of the variance, 0 to 1.
        spread: standard deviation of the fraction over bootstrap samples of the trials.
    """

    key: str
    share: float
    spread: float


def setting_importances(space: Sequence[Dimension], trials: Sequence[Trial], last: int) -> list[Importance]:
    """Returns the importance of each setting, highest first, or an empty list if there are too few trials.

    Args:
        space: search space of the sweep.
        trials: trials of the sweep; the value of each is its forecast for the last step.
        last: last step of a trial.
    """
    found = [(trial.values, trial.forecast(trial.step, last)) for trial in trials if trial.curve]
    if len(found) < MIN_TRIALS or len({value for _, value in found}) < 2:
        return []
    random = np.random.default_rng(0)
    draws = [
        _shares(space, [found[index] for index in random.integers(len(found), size=len(found))]) for _ in range(DRAWS)
    ]
    draws = [draw for draw in draws if draw]
    if len(draws) < 2:
        return []
    keys = [one.key for one in space]
    made = [Importance(key, mean(draw[key] for draw in draws), stdev(draw[key] for draw in draws)) for key in keys]
    return sorted(made, key=lambda one: -one.share)


def _shares(space: Sequence[Dimension], found: Sequence[tuple[dict[str, object], float]]) -> dict[str, float]:
    """Returns the explained fraction of variance by setting, or an empty dictionary if all values are equal."""
    if len({value for _, value in found}) < 2:
        return {}
    distributions = {one.key: distribution(one) for one in space}
    study = optuna.create_study(direction="maximize")
    for values, value in found:
        params = {one.key: one.values.index(values[one.key]) if one.is_choice else values[one.key] for one in space}
        study.add_trial(create_trial(value=value, params=params, distributions=distributions))
    shares = FanovaImportanceEvaluator(n_trees=TREES, seed=0).evaluate(study)
    return {one.key: shares.get(one.key, 0.0) for one in space}
