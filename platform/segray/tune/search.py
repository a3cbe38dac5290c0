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
        found: final value of each objective of this sweep, without a change of sign.
    """

    values: Values
    found: dict[str, float] = field(default_factory=dict)


class Search(Protocol):
    """Interface of a searcher."""

    def suggest(self, number: int, trials: Sequence[Trial]) -> Values | None:
        """Returns the settings of a trial, or `None` if the search space is exhausted.

        Args:
            number: number of the trial, 0-based.
            trials: earlier trials.
        """


def build_search(settings: Config, known: Sequence[PriorTrial] = ()) -> Search:
    """Builds the searcher of a sweep. Only TPE uses the known trials."""
    space, tune = dimensions(settings), settings.tune
    if tune.search == "grid":
        return GridSearch(space)
    if tune.search == "random":
        return RandomSearch(space, tune.seed)
    return TpeSearch(space, tune.seed, settings.train.steps, tune.metric, known)


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
        last: last step of a trial.
        metrics: objectives.
        known: trials of an earlier sweep.
    """

    def __init__(
        self,
        space: tuple[Dimension, ...],
        seed: int,
        last: int,
        metrics: Sequence[str],
        known: Sequence[PriorTrial] = (),
    ) -> None:
        self._space, self._seed, self._last, self._metrics = space, seed, last, tuple(metrics)
        self._distributions = {dimension.key: distribution(dimension) for dimension in space}
        self._known = [self._frozen(one.values, [one.found[name] for name in self._metrics]) for one in known]

    def suggest(self, number: int, trials: Sequence[Trial]) -> Values | None:
        sampler = optuna.samplers.TPESampler(
            seed=(self._seed * 1_000_003 + number) % 2**32,
            multivariate=True,
            constant_liar=True,
            n_startup_trials=NUM_STARTUP_TRIALS,
        )
        directions = [MAXIMIZE if objective_sign(name) > 0 else MINIMIZE for name in self._metrics]
        study = optuna.create_study(directions=directions, sampler=sampler)
        study.add_trials([*self._known, *(self._told(trial) for trial in trials if trial.state is not State.FAILED)])
        asked = study.ask(self._distributions).params
        return {one.key: one.values[asked[one.key]] if one.is_choice else asked[one.key] for one in self._space}

    def _told(self, trial: Trial) -> FrozenTrial:
        if trial.state in (State.RUNNING, State.PENDING) or not trial.curve:
            return self._frozen(trial.values, None)
        expected = trial.forecast(trial.step, self._last) * objective_sign(self._metrics[0])
        others = [trial.others.get(name) for name in self._metrics[1:]]
        if any(value is None for value in others):
            return self._frozen(trial.values, None)
        return self._frozen(trial.values, [expected, *(value for value in others if value is not None)])

    def _frozen(self, values: Values, found: Sequence[float] | None) -> FrozenTrial:
        """Returns an Optuna trial, complete if `found` has values, else running."""
        params: dict[str, Any] = {
            one.key: one.values.index(values[one.key]) if one.is_choice else values[one.key] for one in self._space
        }
        state = TrialState.RUNNING if found is None else TrialState.COMPLETE
        return create_trial(state=state, values=found, params=params, distributions=self._distributions)


def distribution(dimension: Dimension) -> BaseDistribution:
    """Returns the Optuna distribution of a setting; for a choice, a distribution of indices."""
    if dimension.is_choice:
        return CategoricalDistribution(range(len(dimension.values)))  # indices, because a value may be a list
    low, high = dimension.values
    if dimension.is_integer:
        return IntDistribution(low, high, log=dimension.is_log)
    return FloatDistribution(low, high, log=dimension.is_log)


optuna.logging.set_verbosity(logging.WARNING)
