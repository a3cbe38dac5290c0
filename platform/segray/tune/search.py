"""Searchers: each suggestion is a function of the seed, the trial number and the results of the earlier trials.

Searchers keep no state between suggestions, so a sweep that resumes after a crash suggests the same settings.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from segray.config import Config
from segray.tune.space import Dimension, Values, dimensions, grid, sample
from segray.tune.trial import State, Trial, objective_sign

MAXIMIZE, MINIMIZE = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
NUM_STARTUP_TRIALS = 10
"""Number of random trials before TPE uses their results."""


@dataclass(frozen=True)
class PriorTrial:
    """Trial of an earlier sweep.

    Attributes:
        values: settings by dotted key.
        metrics: final value of each objective of this sweep, without a change of sign.
    """

    values: Values
    metrics: dict[str, float] = field(default_factory=dict)


class Search(Protocol):
    """Interface of a searcher."""

    def suggest(self, number: int, trials: Sequence[Trial]) -> Values | None:
        """Returns the settings of a trial, or `None` if the search space is exhausted.

        Args:
            number: number of the trial, 0-based.
            trials: earlier trials.
        """


def build_search(settings: Config, prior_trials: Sequence[PriorTrial] = ()) -> Search:
    """Builds the searcher of a sweep. Only TPE uses the trials of an earlier sweep."""
    space, tune = dimensions(settings), settings.tune
    if tune.search == "grid":
        return GridSearch(space)
    if tune.search == "random":
        return RandomSearch(space, tune.seed)
    return TpeSearch(space, tune.seed, settings.train.steps, tune.metrics, prior_trials)


class RandomSearch:
    """Searcher that samples each trial independently."""

    def __init__(self, space: tuple[Dimension, ...], seed: int) -> None:
        self._space, self._seed = space, seed

    def suggest(self, number: int, trials: Sequence[Trial]) -> Values | None:
        return sample(self._space, self._seed, number)


class GridSearch:
    """Searcher that enumerates all combinations of choices."""

    def __init__(self, space: tuple[Dimension, ...]) -> None:
        self._points = list(grid(space))

    def suggest(self, number: int, trials: Sequence[Trial]) -> Values | None:
        return self._points[number] if number < len(self._points) else None


class TpeSearch:
    """Optuna's multivariate tree-structured Parzen estimator (TPE).

    The value of a stopped or paused trial is the forecast of its final value.

    Args:
        space: search space.
        seed: seed of the search.
        last_step: last step of a trial.
        metrics: objectives.
        prior_trials: trials of an earlier sweep.
    """

    def __init__(
        self,
        space: tuple[Dimension, ...],
        seed: int,
        last_step: int,
        metrics: Sequence[str],
        prior_trials: Sequence[PriorTrial] = (),
    ) -> None:
        self._space, self._seed, self._last_step, self._metrics = space, seed, last_step, tuple(metrics)
        self._distributions = {dimension.key: distribution(dimension) for dimension in space}
        self._prior_trials = [
            self._to_optuna(prior.values, [prior.metrics[name] for name in self._metrics]) for prior in prior_trials
        ]

    def suggest(self, number: int, trials: Sequence[Trial]) -> Values | None:
        sampler = optuna.samplers.TPESampler(
            seed=(self._seed * 1_000_003 + number) % 2**32,
            multivariate=True,
            constant_liar=True,
            n_startup_trials=NUM_STARTUP_TRIALS,
        )
        directions = [MAXIMIZE if objective_sign(name) > 0 else MINIMIZE for name in self._metrics]
        study = optuna.create_study(directions=directions, sampler=sampler)
        study.add_trials(self._prior_trials)
        study.add_trials(
            [
                self._to_optuna(trial.values, self._objectives(trial))
                for trial in trials
                if trial.state is not State.FAILED
            ]
        )
        params = study.ask(self._distributions).params
        return {
            dimension.key: dimension.values[params[dimension.key]] if dimension.is_choice else params[dimension.key]
            for dimension in self._space
        }

    def _objectives(self, trial: Trial) -> list[float] | None:
        """Returns the expected final objectives of a trial, or `None` if they are unknown."""
        if trial.state in (State.RUNNING, State.PENDING) or not trial.curve:
            return None
        if not all(name in trial.other_metrics for name in self._metrics[1:]):
            return None
        first = trial.forecast(trial.step, self._last_step) * objective_sign(self._metrics[0])
        return [first, *(trial.other_metrics[name] for name in self._metrics[1:])]

    def _to_optuna(self, values: Values, objectives: Sequence[float] | None) -> FrozenTrial:
        """Returns an Optuna trial: complete if it has objectives, else running."""
        state = TrialState.RUNNING if objectives is None else TrialState.COMPLETE
        params = optuna_params(self._space, values)
        return create_trial(state=state, values=objectives, params=params, distributions=self._distributions)


def optuna_params(space: Sequence[Dimension], values: Values) -> dict[str, Any]:
    """Returns the Optuna parameters of settings; a choice is represented by its index, because it may be a list."""
    return {
        dimension.key: dimension.values.index(values[dimension.key]) if dimension.is_choice else values[dimension.key]
        for dimension in space
    }


def distribution(dimension: Dimension) -> BaseDistribution:
    """Returns the Optuna distribution of a setting; for a choice, a distribution of indices."""
    if dimension.is_choice:
        return CategoricalDistribution(range(len(dimension.values)))
    low, high = dimension.values
    if dimension.is_integer:
        return IntDistribution(low, high, log=dimension.is_log)
    return FloatDistribution(low, high, log=dimension.is_log)


optuna.logging.set_verbosity(logging.WARNING)
