"""Complete execution of a sweep, from validation to results. `pipelines/tune.py` calls `run_sweep`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import ray
from ray import tune as ray_tune

from segray.config import Config, paths
from segray.core.errors import CheckpointError, RunStoppedError, TrainingError
from segray.data import prefetch
from segray.data.manifest import Manifest
from segray.data.prefetch import SharedSplit
from segray.data.reader import SplitReader
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL, Journal
from segray.tracking.sweep_uploader import SweepUploader
from segray.tracking.uploader import UploadThread
from segray.training.fit import create_heartbeat_actor
from segray.training.trial_context import TrialContext
from segray.tune import finalize, objectives, results, space
from segray.tune.accumulation import AccumulationTable
from segray.tune.controller import SweepController
from segray.tune.estimate import SweepEstimate, estimate_sweep
from segray.tune.journal import trial_dir
from segray.tune.ray_tune import TrialRunners, run_tune
from segray.tune.schedulers.build import build_scheduler
from segray.tune.search import build_search
from segray.tune.setup import PreparedSweep, prepare_sweep
from segray.tune.trial import COST, State, Trial
from segray.tune.trial_actor import TrialActor, TrialTask
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
        outlook: estimated cost of the sweep.
        sweeping: controller of the sweep.
        spent_s: callable that returns the run time in seconds, including the time before a resume.
    """

    config: Config
    folder: Path
    outlook: SweepEstimate
    sweeping: SweepController
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
    begun = prepare_sweep(config, resume, load_prior_trials, say)
    with begun.lock, _uploaded(begun, say) as family, _told_how_to_go_on(begun):
        why = _search(begun, say, watch)
        result = finalize.finalize_sweep(begun, why, say)
        begun.record.journal.write("end", status="FINISHED", cut_short=why)
    return finalize.with_registered_version(result, family)


@contextmanager
def _told_how_to_go_on(begun: PreparedSweep) -> Iterator[None]:
    """Converts an interrupt into a RunStoppedError with the option that resumes the sweep."""
    try:
        yield
    except (KeyboardInterrupt, RunStoppedError) as error:
        raise RunStoppedError(
            f"sweep {begun.folder.name} was stopped; it goes on with --resume {begun.folder}."
        ) from error


@contextmanager
def _uploaded(begun: PreparedSweep, say: Callable[[str], None]) -> Iterator[SweepUploader]:
    """Uploads the journals during the sweep, and writes an end record to its own journal if it fails."""
    family = SweepUploader(begun.folder, begun.tracking_uri, say)
    uploading = UploadThread(family, say)
    uploading.start()
    try:
        yield family
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt | RunStoppedError) else "FAILED"
        begun.record.journal.write("end", status=status)
        raise
    finally:
        if not uploading.close():
            uri = paths.redact(begun.tracking_uri)
            say(f"what {uri} lacks is uploaded later by `segray tracking sync {begun.folder}`.")


def _search(begun: PreparedSweep, say: Callable[[str], None], watch: Callable[[SweepView], None]) -> str | None:
    """Runs the trials and returns the reason for an early end, or `None` if all trials are over."""
    config, record = begun.config, begun.record
    began = monotonic()
    sweeping = SweepController(
        build_scheduler(config),
        build_search(config, begun.known),
        config.tune.max_trials,
        config.tune.metric,
        begun.trials,
        record.log_suggestion,
    )
    crew, why, failed_before = TrialManager(begun, sweeping), None, _failed(begun.trials)
    try:
        if not sweeping.is_over:
            expected = estimate_sweep(config, begun.manifest, begun.slots)
            view = SweepView(config, begun.folder, expected, sweeping, lambda: begun.spent_s + monotonic() - began)
            watch(view)
            why = run_tune(
                sweeping,
                crew.trial_runners(say),
                begun.folder,
                crew.on_trial_change,
                lambda: exhausted_budget(view, failed_before),
            )
        sweeping.close(why or "not among the best")
        if why is None:  # otherwise the sweep can resume these trials with a larger budget
            for trial in sweeping.trials:
                record.log_state(trial)
    finally:
        for trial in sweeping.trials:
            crew.close_trial(trial)
    failed = _failed(sweeping.trials)
    if failed and results.best_trial(sweeping.trials) is None:
        told = "all" if failed == len(sweeping.trials) else f"{failed} of"
        raise TrainingError(f"{told} {len(sweeping.trials)} trials failed:{results.failure_reasons(sweeping.trials)}")
    return why


def _failed(trials: Sequence[Trial]) -> int:
    return sum(trial.state is State.FAILED for trial in trials)


def exhausted_budget(view: SweepView, failed_before: int) -> str | None:
    """Returns a description of the exhausted budget or limit of a sweep, or `None` if there is none.

    Args:
        view: view of the sweep.
        failed_before: number of trials that failed before a resume; they do not count, as the cause may be fixed.
    """
    budget, trials = view.config.tune.budget, view.sweeping.trials
    failed = _failed(trials) - failed_before
    if failed >= MAX_EARLY_FAILURES and not any(trial.curve for trial in trials):
        return f"{failed} trials failed, and none was ever validated"
    if budget.hours is not None and view.spent_s() >= budget.hours * 3600:
        return f"tune.budget.hours, {budget.hours:g}, are spent"
    if budget.trials is not None and sum(trial.is_over for trial in trials) >= budget.trials:
        return f"tune.budget.trials, {budget.trials}, have come to an end"
    workers = view.config.train.workers
    if budget.gpu_hours is not None:
        hours = results.sweep_cost(trials, view.config.train.steps, workers).worker_hours
        if hours >= budget.gpu_hours:
            return f"tune.budget.gpu_hours, {budget.gpu_hours:g}, are spent"
    return None


class TrialManager:
    """Creates the tasks of a sweep's trials and records their states.

    Args:
        begun: prepared sweep.
        sweeping: controller of the sweep.
    """

    def __init__(self, begun: PreparedSweep, sweeping: SweepController) -> None:
        self._begun, self._sweeping = begun, sweeping
        self._memory = AccumulationTable()
        self._costs: dict[str, dict[str, float]] = {}
        for trial in sweeping.trials:
            self._learn(trial)

    def trial_runners(self, say: Callable[[str], None]) -> TrialRunners:
        """Returns the Tune actors for the trials. The data is in the cluster's object store if it fits."""
        begun, bell = self._begun, create_heartbeat_actor()
        data = preload_splits(begun.config, begun.manifest, say)
        part = TrialContext(begun.key, 0, begun.slots.placement, begun.tracking_uri, data, bell)
        trainable: type[TrialActor] = ray_tune.with_parameters(TrialActor, part=part)

        def stop(why: str, interrupted: bool) -> None:
            say(f"{why}: each trial at work keeps a checkpoint of its step.")
            bell.stop.remote(paths.job_stop_timeout_s() if interrupted else None)

        return TrialRunners(trainable, begun.slots.num_concurrent, self.build_task, stop)

    def build_task(self, trial: Trial) -> str:
        """Returns the task of an actor for a trial, as text."""
        begun = self._begun
        config = space.apply_values(begun.config, trial.values)
        folder = trial_dir(begun.folder, trial.number)
        config = config.model_copy(update={"name": folder.name, "results": str(begun.folder)})
        if trial.accumulation_steps is None:
            trial.accumulation_steps = self._memory.accumulation_steps(config)
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"accumulate": trial.accumulation_steps})}
        )
        trial.others |= self._costs_of(config)
        donor = None if trial.copy_from is None else str(trial_dir(begun.folder, trial.copy_from))
        is_moved = begun.config.tune.scheduler == "pbt"
        moved = tuple(one.key for one in space.dimensions(begun.config)) if is_moved else ()
        return TrialTask(trial.number, trial.step, config, moved, donor).to_json()

    def on_trial_change(self, trial: Trial) -> None:
        """Records a trial whose segment started or ended."""
        self._learn(trial)
        self._begun.record.log_state(trial)

    def close_trial(self, trial: Trial) -> None:
        """Completes the journal of a trial's run with its costs, an end record if it is missing, and its outcome."""
        run = trial_dir(self._begun.folder, trial.number)
        if not (run / JOURNAL).exists():
            return
        journal = Journal(run)
        records = journal.records()
        costs = {name: value for name, value in trial.others.items() if name.startswith(COST)}
        if costs and not any(
            record["kind"] == "metrics" and costs.keys() <= record["values"].keys() for record in records
        ):
            journal.write("metrics", step=trial.step, values=costs)
        ends = [record for record in records if record["kind"] in ("run", "resumed", "end")]
        if ends and ends[-1]["kind"] != "end":
            journal.write("end", status=STATUS.get(trial.state, "KILLED"))
        told = f"{trial.state}{f': {trial.reason}' if trial.reason else ''}"
        journal.write("tag", name=OUTCOME_TAG, value=told)

    def _learn(self, trial: Trial) -> None:
        """Records the gradient accumulation steps that a trial required."""
        run = trial_dir(self._begun.folder, trial.number)
        try:
            config = checkpoint.load_config(run)
        except CheckpointError:  # it has not started
            return
        trial.accumulation_steps = config.train.accumulate
        if trial.accumulation_steps > space.apply_values(self._begun.config, trial.values).train.accumulate:
            self._memory.record(config)

    def _costs_of(self, config: Config) -> dict[str, float]:
        """Returns the costs of a trial's model that are objectives of the sweep."""
        begun = self._begun
        wanted = tuple(name for name in begun.config.tune.metric if name in objectives.COSTS)
        key = f"{config.model.model_dump_json()} {config.data.crop}"
        if wanted and key not in self._costs:
            self._costs[key] = objectives.measure_costs(config, begun.manifest.classes, wanted, begun.slots.placement)
        return self._costs.get(key, {})


def preload_splits(config: Config, manifest: Manifest, say: Callable[[str], None]) -> dict[str, SharedSplit]:
    """Loads both splits into the cluster's object store. Returns an empty dictionary if they do not fit."""
    splits = {name: manifest.split(name) for name in (config.data.train_split, config.data.val_split)}
    size = sum(shard.bytes for split in splits.values() for shard in split.shards)
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    room = MAX_STORE_FRACTION * min(stores, default=0)
    if size > room:
        say(
            f"the data, {size / 2**20:.0f} MiB, is read by each trial: a node's object store has {room / 2**20:.0f} "
            "MiB for it."
        )
        return {}
    return {name: prefetch.share_split(SplitReader(config.data.root, split)) for name, split in splits.items()}
