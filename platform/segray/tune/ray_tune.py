"""Adapter for Ray Tune, which only runs the actors: all its decisions, checkpoints and logs are switched off.

Tune creates the actors of the trials, reuses them, calls them in parallel and detects those that die. Switched off:

- Search and schedulers: `ControllerSearcher` and `ControllerScheduler` forward every request to the `SweepController`.
  Tune can pause and copy only trials whose checkpoints it manages, but runs of Ray Train write their own.
- Experiment state (`NoTuneState`): a sweep resumes from its journal, which is complete even if the driver is killed.
- Metrics (`to_tune_result`): a report is a text for Tune, which would interpret and check the numbers of a dictionary.
- Number of samples, checkpoints, loggers, progress output and signal handler (`run_tune`, `ENVIRONMENT`).

For Tune, a trial is one segment of a sweep's trial: a paused trial has ended, and a resumed trial is a new one.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory, Trainable
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import DONE
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from segray.core.errors import SegrayError
from segray.core.logging import silence_libraries
from segray.core.signals import handle_signals
from segray.training.heartbeat import HeartbeatMonitor, create_local_actor
from segray.training.trial_context import TrialContext
from segray.tune.controller import SweepController
from segray.tune.schedulers.base import SchedulerDecision
from segray.tune.trial import State, Trial
from segray.tune.trial_run import TrialReport, TrialRun, TrialTask

MAX_ACTOR_FAILURES = 3
TASK, REPORT = "task", "report"  # keys of a trial's configuration and of its results in Tune
STORAGE = "tune"  # subfolder of the sweep folder for the files that Tune writes
CLOUD_KEY_PREFIX = "AWS_"
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the sweep logs to MLflow
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the sweep has its own handler
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the experiment state is never restored
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "600",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "120",  # a stopped run first shuts down its workers
    "RAY_AIR_NEW_OUTPUT": "0",
}


def to_tune_result(report: TrialReport) -> dict[str, Any]:
    """Returns a report as the result of a Tune trial."""
    return {REPORT: json.dumps(asdict(report)), DONE: report.is_final}


def from_tune_result(result: dict[str, Any] | None) -> TrialReport | None:
    """Returns the report in the result of a Tune trial, or `None` if it has none."""
    return TrialReport(**json.loads(result[REPORT])) if result and REPORT in result else None


class TrialActor(Trainable):  # type: ignore[misc]
    """Tune actor that runs one trial segment after another."""

    def setup(self, config: dict[str, Any], context: TrialContext, stop_signal: ray.actor.ActorHandle) -> None:
        silence_libraries()
        self._context = replace(context, heartbeat_monitor=create_local_actor(HeartbeatMonitor))
        self._stop_signal = stop_signal
        self._start_run(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._run.close()
        self._start_run(new_config)
        return True

    def _start_run(self, config: dict[str, Any]) -> None:
        self._run = TrialRun(TrialTask.from_json(config[TASK]), self._context, self._stop_signal)

    def step(self) -> dict[str, Any]:
        return to_tune_result(self._run.next_report())

    def stop_now(self) -> None:
        """Stops the run immediately, without waiting for its end."""
        self._run.stop.force()

    def cleanup(self) -> None:
        self._run.close()


def trial_actor_class(context: TrialContext, stop_signal: ray.actor.ActorHandle) -> type[TrialActor]:
    """Returns the actor class for the trials of a sweep."""
    return tune.with_parameters(TrialActor, context=context, stop_signal=stop_signal)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TrialRunners:
    """Actors that run the trials of a sweep.

    Attributes:
        actor_class: class of the actors, which takes a task and returns reports as `TrialActor` does.
        max_concurrent: maximum number of concurrent trials.
        build_task: callable that returns the task of an actor for a trial, as text.
        on_change: callable that receives each trial after its segment starts or ends.
        request_stop: callable that stops all trials after a checkpoint, given the reason, and True after an interrupt.
    """

    actor_class: type[Trainable]
    max_concurrent: int
    build_task: Callable[[Trial], str]
    on_change: Callable[[Trial], None]
    request_stop: Callable[[str, bool], object] = lambda _reason, _interrupted: None


class NoTuneState:
    """Base class that excludes all state from Tune's experiment state.

    Tune never restores it, and cannot pickle the locks and cluster handles in it.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


class SweepStopper(NoTuneState, Stopper):  # type: ignore[misc]
    """Stops the sweep after an interrupt or when its budget is exhausted.

    Attributes:
        interrupted: True if the sweep was interrupted.
        reason: reason for an early end of the sweep; `None` if there is none.
    """

    def __init__(self, runners: TrialRunners, exhausted_budget: Callable[[], str | None]) -> None:
        self._runners, self._exhausted_budget = runners, exhausted_budget
        self.interrupted = False
        self.reason: str | None = None

    def interrupt(self) -> None:
        """Records an interrupt."""
        self.interrupted = True

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.reason is None:
            self.reason = "interrupted" if self.interrupted else self._exhausted_budget()
            if self.reason is not None:
                self._runners.request_stop(self.reason, self.interrupted)
        return self.reason is not None


class ControllerSearcher(NoTuneState, Searcher):  # type: ignore[misc]
    """Tune searcher that returns the trial segments to run next.

    Attributes:
        running: running trial by the id of its segment in Tune.
    """

    def __init__(self, controller: SweepController, runners: TrialRunners, stopper: SweepStopper) -> None:
        super().__init__()
        self._controller, self._runners, self._stopper = controller, runners, stopper
        self.running: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        if self._stopper.reason is not None:
            return Searcher.FINISHED
        if len(self.running) >= self._runners.max_concurrent:
            return None
        while (trial := self._controller.next_trial()) is not None:
            try:
                task = self._runners.build_task(trial)
            except SegrayError as error:  # for example, settings that cannot be trained
                self._controller.on_end(trial, State.FAILED, str(error))
                self._runners.on_change(trial)
                continue
            self._runners.on_change(trial)
            self.running[trial_id] = trial
            return {TASK: task}
        return Searcher.FINISHED if self._controller.is_over else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self.running.pop(trial_id)
        if (report := from_tune_result(result)) is not None:
            trial.segment_s = report.seconds
        trial.end_segment()
        if trial.state is State.RUNNING:  # otherwise the scheduler has ended the segment
            self._end_trial(trial, report, error)
        self._runners.on_change(trial)

    def _end_trial(self, trial: Trial, report: TrialReport | None, is_actor_dead: bool) -> None:
        if is_actor_dead:
            trial.actor_failures += 1
            can_retry = trial.actor_failures < MAX_ACTOR_FAILURES
            self._controller.on_end(trial, State.PENDING if can_retry else State.FAILED, "its actor died")
        elif report is None or not report.is_final:
            self._controller.on_end(trial, State.PENDING)
        elif report.error:
            self._controller.on_end(trial, State.FAILED, report.error)
        else:
            self._controller.on_end(trial, State.FINISHED)

    def suspend_running(self) -> None:
        """Marks running trials as pending after an early end of the sweep, which Tune does not report."""
        for trial in self.running.values():
            trial.end_segment()
            if trial.state is State.RUNNING:
                self._controller.on_end(trial, State.PENDING)
            self._runners.on_change(trial)
        self.running = {}

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class ControllerScheduler(NoTuneState, FIFOScheduler):  # type: ignore[misc]
    """Tune scheduler that ends the segment of a trial that does not continue."""

    def __init__(self, controller: SweepController, searcher: ControllerSearcher) -> None:
        super().__init__()
        self._controller, self._searcher = controller, searcher

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        report = from_tune_result(result)
        if report is None or report.step is None:
            return str(TrialScheduler.CONTINUE)
        sweep_trial = self._searcher.running[trial.trial_id]
        sweep_trial.segment_s = report.seconds
        if self._controller.on_result(sweep_trial, report.step, report.metrics) is SchedulerDecision.CONTINUE:
            return str(TrialScheduler.CONTINUE)
        # Tune's own stop is too late: it may keep the actor for the next trial and call it only then.
        trial.temporary_state.ray_actor.stop_now.remote()
        return str(TrialScheduler.STOP)


def run_tune(
    controller: SweepController,
    runners: TrialRunners,
    folder: Path,
    exhausted_budget: Callable[[], str | None] = lambda: None,
) -> str | None:
    """Runs the trials of a sweep.

    Args:
        controller: controller of the sweep.
        runners: actors that run the trials.
        folder: sweep folder.
        exhausted_budget: callable that returns a description of the exhausted budget, or `None`.

    Returns:
        Reason for an early end of the sweep, or `None` if all trials are over.

    Raises:
        KeyboardInterrupt: the sweep was interrupted; its runs are shut down.
    """
    _configure_tune()
    stopper = SweepStopper(runners, exhausted_budget)
    searcher = ControllerSearcher(controller, runners, stopper)
    driver_node = PlacementGroupFactory([{f"node:{ray.util.get_node_ip_address()}": 0.001}])
    num_attempts = len(list((folder / STORAGE).glob("attempt-*")))
    tuner = tune.Tuner(
        tune.with_resources(runners.actor_class, driver_node),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=ControllerScheduler(controller, searcher),
            num_samples=-1,  # the searcher ends the sweep
            reuse_actors=True,
            trial_name_creator=lambda trial: f"part_{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"part_{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{num_attempts + 1}",  # Tune would reuse the state of an existing experiment
            storage_path=str(folder / STORAGE),
            stop=stopper,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs write their own checkpoints
            verbose=0,
        ),
    )
    with handle_signals(stopper.interrupt):
        tuner.fit()
    searcher.suspend_running()
    if stopper.interrupted:
        raise KeyboardInterrupt
    return stopper.reason


def _configure_tune() -> None:
    """Sets Tune's environment variables and log level, and prevents it from passing on cloud keys.

    Tune would pass the keys in a runtime environment, which Ray writes to its logs. Nodes have their own keys or role.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    passed_on = class_cache.ENV_VARS_TO_PROPAGATE
    passed_on.difference_update({name for name in passed_on if name.startswith(CLOUD_KEY_PREFIX)})
