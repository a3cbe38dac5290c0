"""Complete execution of a sweep, from validation to results. `pipelines/tune.py` calls `run_sweep`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import ray

from segray.config import Config, paths
from segray.core.errors import CheckpointError, RunStoppedError, TrainingError
from segray.core.numbers import MIB
from segray.data import prefetch
from segray.data.manifest import Manifest
from segray.data.prefetch import SharedSplit
from segray.data.reader import SplitReader
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL, Journal
from segray.tracking.sweep_uploader import SweepUploader
from segray.tracking.uploader import UploadThread
from segray.training.heartbeat import create_local_actor
from segray.training.shutdown import StopSignal
from segray.training.trial_context import TrialContext
from segray.tune import finalize, objectives, results, space
from segray.tune.accumulation import AccumulationTable
from segray.tune.controller import SweepController
from segray.tune.estimate import SweepEstimate, estimate_sweep
from segray.tune.initial_weights import download_initial_weights
from segray.tune.journal import trial_dir
from segray.tune.ray_tune import TrialRunners, run_tune, trial_actor_class
from segray.tune.schedulers.build import build_scheduler
from segray.tune.search import build_search
from segray.tune.setup import PreparedSweep, prepare_sweep
from segray.tune.trial import COST, State, Trial
from segray.tune.trial_run import TrialTask
from segray.tune.warm_start import load_prior_trials

OUTCOME_TAG = "segray.outcome"
MAX_STORE_FRACTION = 0.3
"""Maximum fraction of a node's object store for the data."""
MAX_EARLY_FAILURES = 5
"""Number of failed trials that ends the sweep if no trial was validated: further trials would fail as well."""
STATUS = {State.FINISHED: "FINISHED", State.FAILED: "FAILED"}


@dataclass(frozen=True)
class SweepView:
    """View of a running sweep.

    Attributes:
        config: settings of the sweep.
        folder: sweep folder.
        estimate: estimated cost of the sweep.
        controller: controller of the sweep.
        spent_s: callable that returns the run time in seconds, including the time before a resume.
    """

    config: Config
    folder: Path
    estimate: SweepEstimate
    controller: SweepController
    spent_s: Callable[[], float]


def run_sweep(
    config: Config,
    *,
    resume: str | None = None,
    say: Callable[[str], None] = print,
    watch: Callable[[SweepView], None] = lambda _view: None,
) -> finalize.SweepResult:
    """Runs a sweep and returns its result.

    Args:
        config: settings shared by all trials, and the search space in `tune`.
        resume: "auto" or the folder of a sweep to resume; `None` starts a new sweep.
        say: callable that receives messages for the user.
        watch: callable that receives a view of the sweep before the first trial starts.

    Raises:
        UserError: the sweep cannot run; no folder is created.
        TrainingError: no trial was validated; the message has the reasons.
        RunStoppedError: the sweep was interrupted; it can be resumed.
    """
    sweep = prepare_sweep(config, resume, load_prior_trials, say)
    with (
        sweep.lock,
        _upload_journals(sweep, say) as uploader,
        _add_resume_hint(sweep),
        download_initial_weights(sweep.config, sweep.folder, sweep.tracking_uri) as downloads,
    ):
        sweep = replace(sweep, initial_weights=downloads)
        end_reason = _run_trials(sweep, say, watch)
        result = finalize.finalize_sweep(sweep, end_reason, say)
        sweep.record.journal.write("end", status="FINISHED", cut_short=end_reason)
    return finalize.with_registered_version(result, uploader)


@contextmanager
def _add_resume_hint(sweep: PreparedSweep) -> Iterator[None]:
    """Converts an interrupt into a RunStoppedError whose message has the option that resumes the sweep."""
    try:
        yield
    except (KeyboardInterrupt, RunStoppedError) as error:
        raise RunStoppedError(
            f"sweep {sweep.folder.name} was stopped; resume it with --resume {sweep.folder}."
        ) from error


@contextmanager
def _upload_journals(sweep: PreparedSweep, say: Callable[[str], None]) -> Iterator[SweepUploader]:
    """Uploads the journals during the sweep, and writes an end record to its own journal if it fails."""
    uploader = SweepUploader(sweep.folder, sweep.tracking_uri, say)
    thread = UploadThread(uploader, say)
    thread.start()
    try:
        yield uploader
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt | RunStoppedError) else "FAILED"
        sweep.record.journal.write("end", status=status)
        raise
    finally:
        if not thread.close():
            uri = paths.redact(sweep.tracking_uri)
            say(f"some records are not in {uri} yet; upload them with `segray tracking sync {sweep.folder}`.")


def _run_trials(sweep: PreparedSweep, say: Callable[[str], None], watch: Callable[[SweepView], None]) -> str | None:
    """Runs the trials and returns the reason for an early end, or `None` if all trials are over."""
    config, record = sweep.config, sweep.record
    start = monotonic()
    controller = SweepController(
        build_scheduler(config),
        build_search(config, sweep.prior_trials),
        config.tune.max_trials,
        config.tune.metrics,
        sweep.trials,
        record.log_suggestion,
    )
    manager, end_reason, failed_before = TrialManager(sweep, controller), None, _num_failed(sweep.trials)
    try:
        if not controller.is_over:
            estimate = estimate_sweep(config, sweep.manifest, sweep.slots)
            view = SweepView(config, sweep.folder, estimate, controller, lambda: sweep.spent_s + monotonic() - start)
            watch(view)
            runners = manager.trial_runners(say)
            end_reason = run_tune(controller, runners, sweep.folder, lambda: exhausted_budget(view, failed_before))
        controller.close(end_reason or "not among the best")
        if end_reason is None:  # otherwise the sweep can resume these trials with a larger budget
            for trial in controller.trials:
                record.log_state(trial)
    finally:
        for trial in controller.trials:
            manager.close_trial(trial)
    num_failed, num_trials = _num_failed(controller.trials), len(controller.trials)
    if num_failed and results.best_trial(controller.trials) is None:
        count = f"all {num_trials}" if num_failed == num_trials else f"{num_failed} of {num_trials}"
        raise TrainingError(f"{count} trials failed:{results.failure_reasons(controller.trials)}")
    return end_reason


def _num_failed(trials: Sequence[Trial]) -> int:
    return sum(trial.state is State.FAILED for trial in trials)


def exhausted_budget(view: SweepView, failed_before: int) -> str | None:
    """Returns a description of the exhausted budget or limit of a sweep, or `None` if there is none.

    Args:
        view: view of the sweep.
        failed_before: number of trials that failed before a resume; they do not count, as the cause may be fixed.
    """
    budget, trials = view.config.tune.budget, view.controller.trials
    failed = _num_failed(trials) - failed_before
    if failed >= MAX_EARLY_FAILURES and not any(trial.curve for trial in trials):
        return f"{failed} trials failed, and no trial was validated"
    if budget.hours is not None and view.spent_s() >= budget.hours * 3600:
        return f"tune.budget.hours, {budget.hours:g}, is exhausted"
    if budget.trials is not None and sum(trial.is_over for trial in trials) >= budget.trials:
        return f"tune.budget.trials, {budget.trials}, is exhausted"
    if budget.gpu_hours is not None:
        cost = results.sweep_cost(trials, view.config.train.steps, view.config.train.workers)
        if cost.worker_hours >= budget.gpu_hours:
            return f"tune.budget.gpu_hours, {budget.gpu_hours:g}, is exhausted"
    return None


class TrialManager:
    """Creates the tasks of a sweep's trials and records their states.

    Args:
        sweep: prepared sweep.
        controller: controller of the sweep.
    """

    def __init__(self, sweep: PreparedSweep, controller: SweepController) -> None:
        self._sweep = sweep
        self._accumulation = AccumulationTable()
        self._costs: dict[str, dict[str, float]] = {}
        for trial in controller.trials:
            self._record_accumulation(trial)

    def trial_runners(self, say: Callable[[str], None]) -> TrialRunners:
        """Returns the Tune actors for the trials. The data is in the cluster's object store if it fits."""
        sweep, stop_signal = self._sweep, create_local_actor(StopSignal)
        data = preload_splits(sweep.config, sweep.manifest, say)
        context = TrialContext(sweep.key, 0, sweep.slots.placement, sweep.tracking_uri, data, sweep.initial_weights)

        def request_stop(reason: str, interrupted: bool) -> None:
            say(f"{reason}: running trials save a checkpoint and stop.")
            stop_signal.request_stop.remote(paths.job_stop_timeout_s() if interrupted else None)

        actor_class = trial_actor_class(context, stop_signal)
        max_concurrent = sweep.slots.num_concurrent
        return TrialRunners(actor_class, max_concurrent, self.build_task, self.on_trial_change, request_stop)

    def build_task(self, trial: Trial) -> str:
        """Returns the task of an actor for a trial, as text."""
        sweep = self._sweep
        config = space.apply_values(sweep.config, trial.values)
        folder = trial_dir(sweep.folder, trial.number)
        config = config.model_copy(update={"name": folder.name, "results": str(sweep.folder)})
        if trial.accumulation_steps is None:
            trial.accumulation_steps = self._accumulation.accumulation_steps(config)
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"accumulation_steps": trial.accumulation_steps})}
        )
        trial.other_metrics |= self._costs_of(config)
        donor = None if trial.copy_from is None else str(trial_dir(sweep.folder, trial.copy_from))
        is_pbt = sweep.config.tune.scheduler == "pbt"
        perturbed = tuple(dimension.key for dimension in space.dimensions(sweep.config)) if is_pbt else ()
        return TrialTask(trial.number, trial.step, config, perturbed, donor).to_json()

    def on_trial_change(self, trial: Trial) -> None:
        """Records a trial whose segment started or ended."""
        self._record_accumulation(trial)
        self._sweep.record.log_state(trial)

    def close_trial(self, trial: Trial) -> None:
        """Completes the journal of a trial's run with its costs, an end record if it is missing, and its outcome."""
        run = trial_dir(self._sweep.folder, trial.number)
        if not (run / JOURNAL).exists():
            return
        journal = Journal(run)
        records = journal.records()
        costs = {name: value for name, value in trial.other_metrics.items() if name.startswith(COST)}
        if costs and not any(
            record["kind"] == "metrics" and costs.keys() <= record.get("values", {}).keys() for record in records
        ):
            journal.write("metrics", step=trial.step, values=costs)
        ends = [record for record in records if record["kind"] in ("run", "resumed", "end")]
        if ends and ends[-1]["kind"] != "end":
            journal.write("end", status=STATUS.get(trial.state, "KILLED"))
        outcome = f"{trial.state}{f': {trial.reason}' if trial.reason else ''}"
        journal.write("tag", name=OUTCOME_TAG, value=outcome)

    def _record_accumulation(self, trial: Trial) -> None:
        """Records the gradient accumulation steps that a trial required."""
        run = trial_dir(self._sweep.folder, trial.number)
        try:
            config = checkpoint.load_config(run)
        except CheckpointError:  # it has not started
            return
        trial.accumulation_steps = config.train.accumulation_steps
        if trial.accumulation_steps > space.apply_values(self._sweep.config, trial.values).train.accumulation_steps:
            self._accumulation.record(config)

    def _costs_of(self, config: Config) -> dict[str, float]:
        """Returns the costs of a trial's model that are objectives of the sweep."""
        sweep = self._sweep
        names = tuple(name for name in sweep.config.tune.metrics if name in objectives.COSTS)
        key = f"{config.model.model_dump_json()} {config.data.crop}"
        if names and key not in self._costs:
            self._costs[key] = objectives.measure_costs(config, sweep.manifest.classes, names, sweep.slots.placement)
        return self._costs.get(key, {})


def preload_splits(config: Config, manifest: Manifest, say: Callable[[str], None]) -> dict[str, SharedSplit]:
    """Loads both splits into the cluster's object store. Returns an empty dictionary if they do not fit."""
    splits = {name: manifest.split(name) for name in (config.data.train_split, config.data.val_split)}
    size = sum(shard.bytes for split in splits.values() for shard in split.shards)
    capacities = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    limit = MAX_STORE_FRACTION * min(capacities, default=0)
    if size > limit:
        say(
            f"each trial reads the data from storage: it has {size / MIB:.0f} MiB, and the limit for a node's object "
            f"store is {limit / MIB:.0f} MiB."
        )
        return {}
    return {name: prefetch.share_split(SplitReader(config.data.root, split)) for name, split in splits.items()}
