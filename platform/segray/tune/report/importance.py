"""Hyperparameter importance: the fraction of the objective's variance that each setting explains.

Uses fANOVA (Hutter et al., 2014), a random forest over the trials, as implemented in Optuna. The estimate is uncertain
for few trials. It is therefore repeated on bootstrap samples of the trials, and the result has a mean and a standard
deviation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import create_trial

from segray.tune.search import distribution, optuna_params
from segray.tune.space import Dimension, Values
from segray.tune.trial import Trial

MIN_TRIALS = 8
NUM_BOOTSTRAP_SAMPLES, NUM_TREES = 16, 32


@dataclass(frozen=True)
class Importance:
    """Importance of a setting.

    Attributes:
        key: dotted key of the setting.
        mean: explained fraction of the variance, 0 to 1.
        deviation: standard deviation of the fraction over bootstrap samples of the trials.
    """

    key: str
    mean: float
    deviation: float


def setting_importances(space: Sequence[Dimension], trials: Sequence[Trial], last_step: int) -> list[Importance]:
    """Returns the importance of each setting, highest first, or an empty list if there are too few trials.

    Args:
        space: search space of the sweep.
        trials: trials of the sweep; the value of each is its forecast for the last step.
        last_step: last step of a trial.
    """
    results = [(trial.values, trial.forecast(trial.step, last_step)) for trial in trials if trial.curve]
    if len(results) < MIN_TRIALS or len({value for _, value in results}) < 2:
        return []
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(NUM_BOOTSTRAP_SAMPLES):
        sample = [results[index] for index in rng.integers(len(results), size=len(results))]
        if len({value for _, value in sample}) > 1:
            estimates.append(_explained_fractions(space, sample))
    if len(estimates) < 2:
        return []
    importances = []
    for dimension in space:
        fractions = [estimate[dimension.key] for estimate in estimates]
        importances.append(Importance(dimension.key, fmean(fractions), stdev(fractions)))
    return sorted(importances, key=lambda importance: -importance.mean)


def _explained_fractions(space: Sequence[Dimension], results: Sequence[tuple[Values, float]]) -> dict[str, float]:
    """Returns the explained fraction of variance by setting."""
    distributions = {dimension.key: distribution(dimension) for dimension in space}
    study = optuna.create_study(direction="maximize")
    for values, value in results:
        params = optuna_params(space, values)
        study.add_trial(create_trial(value=value, params=params, distributions=distributions))
    fractions = FanovaImportanceEvaluator(n_trees=NUM_TREES, seed=0).evaluate(study)
    return {dimension.key: fractions.get(dimension.key, 0.0) for dimension in space}
