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


class PopulationBasedTraining:
    """Scheduler for population based training.

    Args:
        space: settings that may be perturbed.
        interval: number of steps between two perturbations.
        last: last step of a trial.
        quantile: fraction of the trials that are replaced (the worst), and that are copied (the best).
        resample: probability that a setting is resampled from its whole range.
        seed: seed of the random numbers.
    """

    def __init__(
        self, space: Sequence[Dimension], interval: int, last: int, quantile: float, resample: float, seed: int
    ) -> None:
        self._space, self._interval, self._last = tuple(space), interval, last
        self._quantile, self._resample, self._seed = quantile, resample, seed

    def on_result(self, trial: Trial, trials: Sequence[Trial], is_whole: bool) -> SchedulerDecision:
        before = max((step for step in trial.curve if step < trial.step), default=0)
        if trial.step >= self._last or trial.step // self._interval == before // self._interval:
            return SchedulerDecision.CONTINUE
        donor = self._donor(trial, trials)
        if donor is not None:
            trial.copy_from = donor.number
            trial.values = self._moved(donor.values, trial)
            trial.reason = f"copies trial {donor.number} at step {donor.step}"
            return SchedulerDecision.PAUSE
        others = [one for one in trials if one is not trial and one.state in (State.PENDING, State.PAUSED)]
        if is_whole and not others:
            return SchedulerDecision.CONTINUE
        trial.reason = "waits for its turn"
        return SchedulerDecision.PAUSE

    def next_to_resume(self, trials: Sequence[Trial], is_whole: bool) -> Trial | None:
        paused = [trial for trial in trials if trial.state is State.PAUSED]
        return min(paused, key=lambda one: (one.step, one.number), default=None)

    def _donor(self, trial: Trial, trials: Sequence[Trial]) -> Trial | None:
        """Returns one of the best trials if the trial is one of the worst, else `None`.

        The choice is random but reproducible: it depends only on the seed, the trial number and its step.
        """
        known = [one for one in trials if one.value is not None and one.state not in (State.FAILED, State.FINISHED)]
        known.sort(key=lambda one: (one.value, one.number))
        count = min(int(np.ceil(len(known) * self._quantile)), len(known) // 2)
        if trial not in known[:count]:
            return None
        best = known[len(known) - count :]
        return best[int(self._random(trial).integers(len(best)))]

    def _moved(self, values: Values, trial: Trial) -> Values:
        """Returns a perturbed copy of the settings."""
        random = self._random(trial, 1)
        return {one.key: self._move(one, values[one.key], random) for one in self._space}

    def _move(self, dimension: Dimension, value: object, random: np.random.Generator) -> object:
        if random.random() < self._resample:
            return dimension.from_unit(random.random())
        up = int(random.integers(2))
        if dimension.is_choice:
            place = dimension.values.index(value) + (1 if up else -1)
            return dimension.values[min(max(place, 0), len(dimension.values) - 1)]
        low, high = dimension.values
        moved = min(max(float(value) * FACTORS[up], low), high)  # type: ignore[arg-type]
        return round(moved) if dimension.is_integer else moved

    def _random(self, trial: Trial, draw: int = 0) -> np.random.Generator:
        return np.random.default_rng([self._seed, trial.number, trial.step, draw])
