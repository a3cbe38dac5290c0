"""How much each setting mattered: how much of what was found varies with it, by a forest over the trials.

fANOVA (Hutter et al., 2014), as Optuna has it. Of few trials it says little: so the forest is grown again over trials
drawn with replacement, and the spread is told with the mean.
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
    """How much a setting mattered.

    Attributes:
        key: of the setting.
        share: of the variance, 0 to 1.
        spread: standard deviation of the share, over draws of the trials.
    """

    key: str
    share: float
    spread: float


def setting_importances(space: Sequence[Dimension], trials: Sequence[Trial], last: int) -> list[Importance]:
    """Returns how much each setting mattered, most first; nothing, if there are too few trials to tell.

    Args:
        space: what was varied.
        trials: of the sweep; each counts with what it was expected to end at.
        last: step of the end.
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
    """Returns each setting's share of the variance of some trials, nothing if they are all alike."""
    if len({value for _, value in found}) < 2:
        return {}
    distributions = {one.key: distribution(one) for one in space}
    study = optuna.create_study(direction="maximize")
    for values, value in found:
        params = {one.key: one.values.index(values[one.key]) if one.is_choice else values[one.key] for one in space}
        study.add_trial(create_trial(value=value, params=params, distributions=distributions))
    shares = FanovaImportanceEvaluator(n_trees=TREES, seed=0).evaluate(study)
    return {one.key: shares.get(one.key, 0.0) for one in space}
