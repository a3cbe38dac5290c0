"""Population based training (PBT): the worst trials resume from checkpoints of the best, with perturbed settings.

Follows Jaderberg et al., Population Based Training of Neural Networks (2017). Ray Tune's implementation needs
checkpoints managed by Tune, which Ray Train runs do not provide. Here a trial is paused at its checkpoint, and its next
segment starts from the checkpoint of its donor.
"""

from collections.abc import Sequence

import numpy as np

from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.space import Dimension, Values
from segray.tune.trial import State, Trial

FACTORS = (0.8, 1.2)
"""Factors of a perturbation: decrease, increase."""
INACTIVE_STATES = (State.FAILED, State.FINISHED)


class PopulationBasedTraining:
    """Scheduler for population based training.

    Args:
        space: settings that may be perturbed.
        perturbation_interval: number of steps between two perturbations.
        last_step: last step of a trial.
        quantile_fraction: fraction of the trials that are replaced (the worst), and that are copied (the best).
        resample_prob: probability that a setting is resampled from its whole range.
        seed: seed of the random numbers.
    """

    def __init__(
        self,
        space: Sequence[Dimension],
        perturbation_interval: int,
        last_step: int,
        quantile_fraction: float,
        resample_prob: float,
        seed: int,
    ) -> None:
        self._space, self._interval, self._last_step = tuple(space), perturbation_interval, last_step
        self._quantile_fraction, self._resample_prob, self._seed = quantile_fraction, resample_prob, seed

    def on_result(self, trial: Trial, trials: Sequence[Trial], is_complete: bool) -> SchedulerDecision:
        previous = max((step for step in trial.curve if step < trial.step), default=0)
        if trial.step >= self._last_step or trial.step // self._interval == previous // self._interval:
            return SchedulerDecision.CONTINUE
        donor = self._donor(trial, trials)
        if donor is not None:
            trial.copy_from = donor.number
            trial.values = self._perturb(donor.values, trial)
            trial.reason = f"copies trial {donor.number} at step {donor.step}"
            return SchedulerDecision.PAUSE
        waiting = [other for other in trials if other is not trial and other.state in (State.PENDING, State.PAUSED)]
        if is_complete and not waiting:
            return SchedulerDecision.CONTINUE
        trial.reason = "waits for the other trials"
        return SchedulerDecision.PAUSE

    def next_to_resume(self, trials: Sequence[Trial], is_complete: bool) -> Trial | None:
        paused = [trial for trial in trials if trial.state is State.PAUSED]
        return min(paused, key=lambda trial: (trial.step, trial.number), default=None)

    def _donor(self, trial: Trial, trials: Sequence[Trial]) -> Trial | None:
        """Returns one of the best trials if the trial is one of the worst, else `None`.

        The choice is random but reproducible: it depends only on the seed, the trial number and its step.
        """
        ranked = [other for other in trials if other.value is not None and other.state not in INACTIVE_STATES]
        ranked.sort(key=lambda other: (other.value, other.number))
        count = min(int(np.ceil(len(ranked) * self._quantile_fraction)), len(ranked) // 2)
        if trial not in ranked[:count]:
            return None
        best = ranked[len(ranked) - count :]
        return best[int(self._rng(trial).integers(len(best)))]

    def _perturb(self, values: Values, trial: Trial) -> Values:
        """Returns a perturbed copy of the settings."""
        rng = self._rng(trial, 1)
        return {dimension.key: self._perturb_value(dimension, values[dimension.key], rng) for dimension in self._space}

    def _perturb_value(self, dimension: Dimension, value: object, rng: np.random.Generator) -> object:
        if rng.random() < self._resample_prob:
            return dimension.from_unit(rng.random())
        is_increase = int(rng.integers(2))
        if dimension.is_choice:
            index = dimension.values.index(value) + (1 if is_increase else -1)
            return dimension.values[min(max(index, 0), len(dimension.values) - 1)]
        low, high = dimension.values
        perturbed = min(max(float(value) * FACTORS[is_increase], low), high)  # type: ignore[arg-type]
        return round(perturbed) if dimension.is_integer else perturbed

    def _rng(self, trial: Trial, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([self._seed, trial.number, trial.step, stream])
