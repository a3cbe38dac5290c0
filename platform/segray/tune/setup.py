"""Preparation of a sweep: validates the settings and resources, then creates the sweep folder or opens it to resume."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO

from segray.cluster import resources
from segray.cluster.connect import connect
from segray.cluster.nodes import potential_nodes
from segray.cluster.resources import TrialSlots
from segray.config import Config, flatten, paths
from segray.core.errors import ConfigError, DataError, ResumeError, format_list
from segray.core.parsing import summarize_error
from segray.data.manifest import Manifest, read_manifest
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.tracking.sweep_uploader import trial_dirs
from segray.tracking.tags import KIND_TAG, SWEEP
from segray.training import runs
from segray.training.preflight import preflight
from segray.training.setup import run_entry, validate_splits
from segray.tune import objectives, space
from segray.tune.journal import SweepJournal, current_values
from segray.tune.schedulers.build import build_scheduler, grace_period, perturbation_interval, rung_steps
from segray.tune.search import PriorTrial
from segray.tune.trial import Trial

PBT_SECTIONS = ("optim.", "loss.", "data.")
"""Prefixes of the settings that may change during the training of a trial."""
CHANGEABLE_ON_RESUME = ("tune.trials", "tune.max_concurrent", "tune.seeds", "tune.budget.")
"""Prefixes of the sweep settings that may change on resume."""


@dataclass(frozen=True)
class PreparedSweep:
    """Validated sweep with its folder.

    Attributes:
        config: settings with resolved paths.
        tracking_uri: URI of the MLflow store, including its password.
        manifest: manifest of the dataset.
        slots: resources of the trials.
        record: journal of the sweep.
        key: key that identifies the sweep's run in MLflow.
        trials: trials from before a resume.
        prior_trials: trials of an earlier sweep, for a warm start.
        spent_s: run time before a resume, in seconds.
        lock: lock file that prevents another process from running the sweep.
        initial_weights: checkpoint folders of the registered versions that trials start from, by reference; empty until
            the sweep has downloaded them.
    """

    config: Config
    tracking_uri: str
    manifest: Manifest
    slots: TrialSlots
    record: SweepJournal
    key: str
    trials: list[Trial]
    prior_trials: tuple[PriorTrial, ...]
    spent_s: float
    lock: IO[str]
    initial_weights: Mapping[str, Path] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Sweep folder, which contains the folders of the trials."""
        return self.record.folder


def prepare_sweep(
    config: Config,
    resume: str | None,
    load_prior_trials: Callable[[Config, str], tuple[PriorTrial, ...]],
    say: Callable[[str], None],
) -> PreparedSweep:
    """Prepares a new sweep or an existing one to resume.

    Args:
        config: settings of the sweep.
        resume: "auto" or a sweep folder; `None` starts a new sweep.
        load_prior_trials: callable that loads the trials of an earlier sweep, given the settings and the URI of the
            MLflow store.
        say: callable that receives messages for the user.

    Raises:
        UserError: the sweep cannot run; no folder is created.
    """
    resolved, tracking_uri = paths.resolve_paths(config), paths.tracking_uri(config)
    space.validate_space(resolved)
    _check_scheduler(resolved)
    manifest = read_manifest(resolved.data.root)
    objectives.validate_objectives(resolved, manifest)
    resolved = objectives.with_objective_score(resolved)
    validate_splits(resolved, manifest)
    folder = _find_sweep(resolved, manifest, resume, say)
    with ExitStack() as on_error:
        lock = None
        if folder is not None:
            lock = on_error.enter_context(runs.lock_run(folder))
            _require_resumable(folder, resolved, manifest)
        connect()
        slots = resources.allocate_trials(
            potential_nodes(), resolved.train.workers, resolved.train.device, resolved.tune.max_concurrent
        )
        preflight(resolved, tracking_uri, manifest, say, is_resumed=folder is not None)
        is_new = folder is None
        prior_trials = load_prior_trials(resolved, tracking_uri) if is_new and resolved.tune.warm_start else ()
        folder = folder or Path(paths.create_run_dir(resolved, SWEEP)[1])
        if lock is None:
            lock = on_error.enter_context(runs.lock_run(folder))
        named = resolved.model_copy(update={"name": folder.name, "results": str(folder.parent)})
        record = SweepJournal(folder, resolved.tune.metrics)
        (folder / checkpoint.CONFIG).write_text(named.model_dump_json(indent=2))
        if is_new:
            _write_start(record, named, manifest, prior_trials)
        else:
            record.journal.write("resumed", dataset={"digest": manifest.digest})
        key, spent_s, prior_trials = _read_start(record)
        on_error.pop_all()  # the caller releases the lock
    trials = record.load_trials()
    return PreparedSweep(named, tracking_uri, manifest, slots, record, key, trials, prior_trials, spent_s, lock)


def _write_start(
    record: SweepJournal, config: Config, manifest: Manifest, prior_trials: tuple[PriorTrial, ...]
) -> None:
    entry = run_entry(config, record.folder, manifest)
    entry["tags"] = {**entry["tags"], KIND_TAG: SWEEP}
    record.journal.write("run", **entry, known=[[trial.values, trial.metrics] for trial in prior_trials])
    record.journal.write("text", name=checkpoint.CONFIG, text=config.model_dump_json(indent=2))


def _read_start(record: SweepJournal) -> tuple[str, float, tuple[PriorTrial, ...]]:
    """Returns the key, the seconds spent before, and the trials of the warm start, from a sweep's journal.

    Raises:
        DataError: the journal is damaged, or does not start with the record of a sweep.
    """
    start, records = record.journal.start(), record.journal.records()
    starts = [entry["time_ms"] for entry in records if entry["kind"] in ("run", "resumed")]
    # The journals of the trials show more precisely when the sweep was killed.
    folders = (record.folder, *trial_dirs(record.folder))
    times = [entry["time_ms"] for folder in folders for entry in Journal(folder).records()]
    # A segment without a later record took no time: its start may lie after the next one if the clock was set back.
    spent_ms = sum(
        max((time for time in times if start <= time < end), default=start) - start for start, end in pairwise(starts)
    )
    try:
        prior_trials = tuple(PriorTrial(current_values(values), metrics) for values, metrics in start["known"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"known: {type(error).__name__}: {summarize_error(error)}"
        raise DataError(f"{record.journal.path} has an invalid start of a sweep ({reason}).") from error
    return start["key"], spent_ms / 1000, prior_trials


def _check_scheduler(config: Config) -> None:
    """Validates the settings of the scheduler.

    Raises:
        ConfigError: the scheduler has no validation to decide from, or cannot change a setting of the search space.
    """
    tune, train = config.tune, config.train
    build_scheduler(config)
    if tune.scheduler in ("asha", "median") and train.val_every >= train.steps:
        raise ConfigError(
            f"train.val_every is {train.val_every}; tune.scheduler {tune.scheduler} expects a value below train.steps, "
            f"{train.steps}, because it compares validations during the training; use --train.val_every "
            f"{max(1, train.steps // 20)}, or --tune.scheduler none."
        )
    if tune.scheduler == "asha" and not rung_steps(grace_period(config), train.val_every, train.steps):
        raise ConfigError(f"tune.grace_steps is {tune.grace_steps}; expected fewer than train.steps, {train.steps}.")
    if tune.scheduler == "median" and grace_period(config) >= train.steps:
        raise ConfigError(f"tune.grace_steps is {tune.grace_steps}; expected fewer than train.steps, {train.steps}.")
    if tune.scheduler == "pbt":
        interval = perturbation_interval(config)
        if max(interval, train.val_every) >= train.steps:
            raise ConfigError(
                f"tune.perturbation_interval is {interval} and train.val_every is {train.val_every}; tune.scheduler "
                f"pbt expects both below train.steps, {train.steps}; otherwise, no trial is ever copied."
            )
        keys = [dimension.key for dimension in space.dimensions(config)]
        fixed = [key for key in keys if not key.startswith(PBT_SECTIONS)]
        if fixed:
            raise ConfigError(
                f"tune.space contains {fixed[0]}, which cannot change during training; tune.scheduler pbt expects "
                f"settings of {', '.join(name.rstrip('.') for name in PBT_SECTIONS)}; use --tune.scheduler asha."
            )


def _find_sweep(config: Config, manifest: Manifest, resume: str | None, say: Callable[[str], None]) -> Path | None:
    """Returns the folder of the sweep to resume, or `None` for a new sweep.

    Raises:
        ResumeError: the folder contains no sweep.
    """
    if resume is None:
        return None
    if resume == paths.RESUME_LATEST:
        latest = runs.find_latest(config, lambda folder: not _differences(folder, config, manifest))
        if latest is None:
            say(f"{config.results} contains no unfinished sweep with these settings; starting a new sweep.")
        return latest
    folder = Path(paths.absolute_path("--resume", resume))
    runs.require_run(folder, resume, "sweep")
    return folder


def _require_resumable(folder: Path, config: Config, manifest: Manifest) -> None:
    """Checks that a sweep can be resumed. The caller has locked the sweep.

    Raises:
        ResumeError: the settings or the data of the sweep differ, or the sweep is finished.
    """
    differences = _differences(folder, config, manifest)
    if differences:
        raise ResumeError(
            f"{folder.name} was started with other settings:{format_list(differences)}\nStart a new sweep."
        )
    if runs.is_finished(folder) and not _is_cut_short(folder):
        raise ResumeError(f"sweep {folder} is finished; start a new sweep.")


def _is_cut_short(folder: Path) -> bool:
    """Returns True if a sweep ended because its budget was exhausted, so it can resume with a larger one."""
    ends = [record for record in Journal(folder).records() if record["kind"] == "end"]
    return bool(ends) and ends[-1].get("cut_short") is not None


def _differences(folder: Path, config: Config, manifest: Manifest) -> list[str]:
    """Returns the forbidden differences from the settings and data of a stored sweep, one line each."""
    stored = checkpoint.load_config(folder)
    if not stored.tune.space:
        return ["the folder contains a run, not a sweep"]
    dataset = {"dataset": Journal(folder).start()["dataset"]["digest"]}
    return list(
        runs.diff(_fixed_settings(stored) | dataset, _fixed_settings(config) | {"dataset": manifest.digest}).values()
    )


def _fixed_settings(config: Config) -> dict[str, object]:
    """Returns the settings that must not change on resume, by dotted key."""
    sweep_settings = {key: value for key, value in flatten(config).items() if key.startswith("tune.")}
    return config.training_settings() | {
        key: value for key, value in sweep_settings.items() if not key.startswith(CHANGEABLE_ON_RESUME)
    }
