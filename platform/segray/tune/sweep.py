"""A sweep from its check to its end: what `pipelines/tune.py` runs."""

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
"""Share of a node's object store that the data may take."""

MAX_EARLY_FAILURES = 5
"""Trials that fail before any is validated end the sweep: the others would fail as they did."""

STATUS = {State.FINISHED: "FINISHED", State.FAILED: "FAILED"}


@dataclass(frozen=True)
class SweepView:
    """What there is to see of a sweep while it runs.

    Attributes:
        config: its settings.
        folder: of the sweep.
        outlook: what it was expected to cost.
        sweeping: its trials.
        spent_s: seconds since it began, those before it was gone on with included.
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
    """Tries settings, and returns the best with what was made of them.

    Args:
        config: what all trials share, and the space in `tune`.
        resume: goes on with a sweep: "auto" or its folder; none begins a new one.
        say: called with the few lines a person should read.
        watch: called before the first trial, to follow them.

    Raises:
        UserError: the sweep cannot work; no folder is left behind.
        TrainingError: every trial failed; the reasons are told.
        StoppedError: it was interrupted; `resume` goes on.
    """
    begun = prepare_sweep(config, resume, load_prior_trials, say)
    with begun.lock, _uploaded(begun, say) as family, _told_how_to_go_on(begun):
        why = _search(begun, say, watch)
        result = finalize.finalize_sweep(begun, why, say)
        begun.record.journal.write("end", status="FINISHED", cut_short=why)
    return finalize.with_registered_version(result, family)


@contextmanager
def _told_how_to_go_on(begun: PreparedSweep) -> Iterator[None]:
    """Has who stops a sweep, whatever it was at, hear what goes on with it."""
    try:
        yield
    except (KeyboardInterrupt, RunStoppedError) as error:
        raise RunStoppedError(
            f"sweep {begun.folder.name} was stopped; it goes on with --resume {begun.folder}."
        ) from error


@contextmanager
def _uploaded(begun: PreparedSweep, say: Callable[[str], None]) -> Iterator[SweepUploader]:
    """Uploads the journals beside the trials, and ends the sweep's own if it was no success."""
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
    """Runs the trials, and returns why that ended before all were over, if it did."""
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
        if why is None:  # otherwise a larger budget goes on with them
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
    """Returns what of a sweep's budget is spent, none if nothing is.

    Args:
        view: of the sweep.
        failed_before: trials that failed at an earlier start: what was at fault may be mended by now.
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
    """What a sweep's trials are run by, and what is written down of them.

    Args:
        begun: the sweep.
        sweeping: its trials.
    """

    def __init__(self, begun: PreparedSweep, sweeping: SweepController) -> None:
        self._begun, self._sweeping = begun, sweeping
        self._memory = AccumulationTable()
        self._costs: dict[str, dict[str, float]] = {}
        for trial in sweeping.trials:
            self._learn(trial)

    def trial_runners(self, say: Callable[[str], None]) -> TrialRunners:
        """Returns Tune's actors for the trials, with the data in the cluster's memory where it fits."""
        begun, bell = self._begun, create_heartbeat_actor()
        data = preload_splits(begun.config, begun.manifest, say)
        part = TrialContext(begun.key, 0, begun.slots.placement, begun.tracking_uri, data, bell)
        trainable: type[TrialActor] = ray_tune.with_parameters(TrialActor, part=part)

        def stop(why: str, interrupted: bool) -> None:
            say(f"{why}: each trial at work keeps a checkpoint of its step.")
            bell.stop.remote(paths.job_stop_timeout_s() if interrupted else None)

        return TrialRunners(trainable, begun.slots.num_concurrent, self.build_task, stop)

    def build_task(self, trial: Trial) -> str:
        """Returns what an actor is to do for a trial, as text."""
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
        """Writes down that a trial was started or has ended its part."""
        self._learn(trial)
        self._begun.record.log_state(trial)

    def close_trial(self, trial: Trial) -> None:
        """Ends a trial's run in its journal, whoever died before doing so, and says what became of it."""
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
        """Notes in how many parts a trial's steps had to be computed."""
        run = trial_dir(self._begun.folder, trial.number)
        try:
            config = checkpoint.load_config(run)
        except CheckpointError:  # it has not begun
            return
        trial.accumulation_steps = config.train.accumulate
        if trial.accumulation_steps > space.apply_values(self._begun.config, trial.values).train.accumulate:
            self._memory.record(config)

    def _costs_of(self, config: Config) -> dict[str, float]:
        """Returns what a trial's model costs, where the sweep looks for that."""
        begun = self._begun
        wanted = tuple(name for name in begun.config.tune.metric if name in objectives.COSTS)
        key = f"{config.model.model_dump_json()} {config.data.crop}"
        if wanted and key not in self._costs:
            self._costs[key] = objectives.measure_costs(config, begun.manifest.classes, wanted, begun.slots.placement)
        return self._costs.get(key, {})


def preload_splits(config: Config, manifest: Manifest, say: Callable[[str], None]) -> dict[str, SharedSplit]:
    """Returns the rows of both splits in the cluster's memory, or nothing, where they do not fit."""
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
