"""Integration with Ray Tune: Tune manages the actors and requests trials from the sweep controller.

A Tune trial is one segment of a sweep's trial. A paused trial has ended for Tune, and a resumed trial is new to Tune.
Tune therefore holds no state of the sweep, and nothing has to be restored there.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory, Trainable
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from segray.core.errors import SegrayError
from segray.core.signals import handle_signals
from segray.tune.controller import SweepController
from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.trial import State, Trial
from segray.tune.trial_actor import DONE, ERROR, METRICS, SECONDS, STEP, TASK

MAX_ACTOR_FAILURES = 3
CLOUD = "AWS_"
FOLDER = "tune"
VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the sweep logs to MLflow
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the sweep's own handler shuts it down
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # this checkpoint is never restored
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "600",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "120",  # a stopped run ends its workers first
    "RAY_AIR_NEW_OUTPUT": "0",
}


class NoTuneState:
    """Base class that excludes all state from Tune's own checkpoints.

    Tune is never restored, and it cannot pickle the locks and cluster handles in that state.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


class SweepStopper(NoTuneState, Stopper):  # type: ignore[misc]
    """Stops the sweep after an interrupt or when its budget is exhausted.

    Args:
        spent: callable that returns a description of the exhausted budget, or `None`.
        stop: callable that stops the running trials, with the reason and True after an interrupt.

    Attributes:
        interrupted: True if the sweep was interrupted.
        why: reason for an early end of the sweep; `None` if there is none.
    """

    def __init__(self, spent: Callable[[], str | None], stop: Callable[[str, bool], object]) -> None:
        self._spent, self._stop = spent, stop
        self.interrupted = False
        self.why: str | None = None

    def interrupt(self) -> None:
        """Records an interrupt."""
        self.interrupted = True

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.why is None:
            self.why = "interrupted" if self.interrupted else self._spent()
            if self.why is not None:
                self._stop(self.why, self.interrupted)
        return self.why is not None


@dataclass(frozen=True)
class TrialRunners:
    """Actors that run the trials.

    Attributes:
        trainable: class of the Tune actor, which takes a task and reports validations as `TrialActor` does.
        count: maximum number of concurrent trials.
        task: callable that returns the task of an actor for a trial, as text.
        stop: callable that stops all trials after a checkpoint, with the reason and True after an interrupt.
    """

    trainable: type[Trainable]
    count: int
    task: Callable[[Trial], str]
    stop: Callable[[str, bool], object] = lambda _why, _interrupted: None


class ControllerSearcher(NoTuneState, Searcher):  # type: ignore[misc]
    """Tune searcher that returns the trial segments to run next."""

    def __init__(
        self, sweeping: SweepController, actors: TrialRunners, ending: SweepStopper, became: Callable[[Trial], None]
    ) -> None:
        super().__init__()
        self._sweeping, self._actors, self._ending, self._became = sweeping, actors, ending, became
        self.running: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        if self._ending.why is not None:
            return Searcher.FINISHED
        if len(self.running) >= self._actors.count:
            return None
        while (trial := self._sweeping.next_trial()) is not None:
            try:
                task = self._actors.task(trial)
            except SegrayError as error:  # for example, settings that cannot be trained
                self._sweeping.on_end(trial, State.FAILED, str(error))
                self._became(trial)
                continue
            self._became(trial)
            self.running[trial_id] = trial
            return {TASK: task}
        return Searcher.FINISHED if self._sweeping.is_over else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self.running.pop(trial_id)
        if result and SECONDS in result:
            trial.segment_s = result[SECONDS]
        trial.end_segment()
        if trial.state is State.RUNNING:
            self._ended(trial, result or {}, error)
        self._became(trial)

    def suspend_running(self) -> None:
        """Marks running trials as pending after an early end of the sweep, which Tune does not report."""
        for trial in self.running.values():
            trial.end_segment()
            if trial.state is State.RUNNING:
                self._sweeping.on_end(trial, State.PENDING)
            self._became(trial)
        self.running = {}

    def _ended(self, trial: Trial, result: dict[str, Any], error: bool) -> None:
        if error:
            trial.actor_failures += 1
            lost = trial.actor_failures >= MAX_ACTOR_FAILURES
            self._sweeping.on_end(trial, State.FAILED if lost else State.PENDING, "its actor died")
        elif result.get(ERROR):
            self._sweeping.on_end(trial, State.FAILED, result[ERROR])
        elif result.get(DONE) and ERROR in result:
            self._sweeping.on_end(trial, State.FINISHED)
        else:
            self._sweeping.on_end(trial, State.PENDING)

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class ControllerScheduler(NoTuneState, FIFOScheduler):  # type: ignore[misc]
    """Tune scheduler that ends the segment of a trial that does not continue."""

    def __init__(self, sweeping: SweepController, asking: ControllerSearcher) -> None:
        super().__init__()
        self._sweeping, self._asking = sweeping, asking

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if STEP not in result or result.get(DONE):
            return str(TrialScheduler.CONTINUE)
        ours = self._asking.running[trial.trial_id]
        ours.segment_s = result[SECONDS]
        verdict = self._sweeping.on_result(ours, result[STEP], json.loads(result[METRICS]))
        if verdict is SchedulerDecision.CONTINUE:
            return str(TrialScheduler.CONTINUE)
        # Stop the run now: Tune may keep the actor for the next trial without a call to it before that.
        trial.temporary_state.ray_actor.stop_now.remote()
        return str(TrialScheduler.STOP)


def run_tune(
    sweeping: SweepController,
    actors: TrialRunners,
    folder: Path,
    became: Callable[[Trial], None],
    spent: Callable[[], str | None] = lambda: None,
) -> str | None:
    """Runs the trials of a sweep.

    Args:
        sweeping: controller of the sweep.
        actors: actors that run the trials.
        folder: sweep folder.
        became: callable that receives each trial after its segment starts or ends.
        spent: callable that returns a description of the exhausted budget, or `None`.

    Returns:
        Reason for an early end of the sweep, or `None` if all trials are over.

    Raises:
        KeyboardInterrupt: the sweep was interrupted; its runs are shut down.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    _keep_secrets()
    ending = SweepStopper(spent, actors.stop)
    asking = ControllerSearcher(sweeping, actors, ending, became)
    here = PlacementGroupFactory([{f"node:{ray.util.get_node_ip_address()}": 0.001}])
    tuner = tune.Tuner(
        tune.with_resources(actors.trainable, here),
        tune_config=tune.TuneConfig(
            search_alg=asking,
            scheduler=ControllerScheduler(sweeping, asking),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"part_{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"part_{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=_attempt(folder),
            storage_path=str(folder / FOLDER),
            stop=ending,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs write their own checkpoints
            verbose=0,
        ),
    )
    with handle_signals(ending.interrupt):
        tuner.fit()
    asking.suspend_running()
    if ending.interrupted:
        raise KeyboardInterrupt
    return ending.why


def _keep_secrets() -> None:
    """Prevents Tune from passing on cloud keys in a runtime environment, which Ray writes to its logs.

    Nodes have their own keys or role.
    """
    names = class_cache.ENV_VARS_TO_PROPAGATE
    names.difference_update({name for name in names if name.startswith(CLOUD)})


def _attempt(folder: Path) -> str:
    """Returns a new experiment name. Tune would reuse the state of an existing one."""
    return f"attempt-{1 + len(list((folder / FOLDER).glob('attempt-*')))}"
