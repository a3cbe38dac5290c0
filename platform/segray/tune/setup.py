"""Preparation of a sweep: validates the settings and resources, then creates the sweep folder or opens it to resume."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

from segray.cluster import resources
from segray.cluster.connect import connect
from segray.cluster.nodes import potential_nodes
from segray.cluster.resources import TrialSlots
from segray.config import Config, flatten, paths
from segray.core.errors import CheckpointError, ConfigError, ResumeError, format_list
from segray.data.manifest import Manifest, read_manifest
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL, Journal
from segray.tracking.sweep_uploader import trial_dirs
from segray.training.preflight import preflight
from segray.training.resume import is_finished, is_locked, lock_run
from segray.training.setup import run_entry, validate_splits
from segray.tune import objectives, space
from segray.tune.journal import KIND_TAG, SWEEP, SweepJournal
from segray.tune.schedulers.build import build_scheduler, grace_period, perturbation_interval, rung_steps
from segray.tune.search import PriorTrial
from segray.tune.trial import Trial

PBT_SECTIONS = ("optim.", "loss.", "data.")
"""Prefixes of the settings that may change during the training of a trial."""
CHANGEABLE_ON_RESUME = ("tune.trials", "tune.concurrent", "tune.seeds", "tune.budget.")
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
        known: trials of an earlier sweep, for a warm start.
        spent_s: run time before a resume, in seconds.
        lock: lock file that prevents another process from running the sweep.
    """

    config: Config
    tracking_uri: str
    manifest: Manifest
    slots: TrialSlots
    record: SweepJournal
    key: str
    trials: list[Trial]
    known: tuple[PriorTrial, ...]
    spent_s: float
    lock: IO[str]

    @property
    def folder(self) -> Path:
        """Sweep folder, which contains the folders of the trials."""
        return self.record.folder


def prepare_sweep(
    config: Config,
    resume: str | None,
    warm: Callable[[Config, str], tuple[PriorTrial, ...]],
    say: Callable[[str], None],
) -> PreparedSweep:
    """Prepares a new sweep or an existing one to resume.

    Args:
        config: settings of the sweep.
        resume: "auto" or a sweep folder; `None` starts a new sweep.
        warm: callable that loads the trials of an earlier sweep, given the settings and the URI of the MLflow store.
        say: callable that receives messages for the user.

    Raises:
        UserError: the sweep cannot run; no folder is created.
    """
    settled, tracking_uri = paths.resolve_paths(config), paths.tracking_uri(config)
    space.validate_space(settled)
    _check_scheduler(settled)
    manifest = read_manifest(settled.data.root)
    objectives.validate_objectives(settled, manifest)
    validate_splits(settled, manifest)
    folder = _named(settled, manifest, resume, say)
    connect()
    slots = resources.allocate_trials(
        potential_nodes(), settled.train.workers, settled.train.device, settled.tune.concurrent
    )
    preflight(settled, tracking_uri, manifest, say, goes_on=folder is not None)
    is_new = folder is None
    known = warm(settled, tracking_uri) if is_new and settled.tune.warm_start else ()
    if folder is None:
        folder = Path(paths.create_run_dir(settled, SWEEP)[1])
    lock = lock_run(folder)
    named = settled.model_copy(update={"name": folder.name, "results": str(folder.parent)})
    record = SweepJournal(folder, settled.tune.metric)
    (folder / checkpoint.CONFIG).write_text(named.model_dump_json(indent=2))
    if is_new:
        _write_start(record, named, manifest, known)
    else:
        record.journal.write("resumed", dataset={"digest": manifest.digest})
    key, spent_s, known = _read_start(record)
    return PreparedSweep(named, tracking_uri, manifest, slots, record, key, record.load_trials(), known, spent_s, lock)


def _write_start(record: SweepJournal, config: Config, manifest: Manifest, known: tuple[PriorTrial, ...]) -> None:
    first = run_entry(config, record.folder, manifest)
    first["tags"] = {**first["tags"], KIND_TAG: SWEEP}
    record.journal.write("run", **first, known=[[one.values, one.found] for one in known])
    record.journal.write("text", name=checkpoint.CONFIG, text=config.model_dump_json(indent=2))


def _read_start(record: SweepJournal) -> tuple[str, float, tuple[PriorTrial, ...]]:
    """Returns the key, the seconds spent before, and the trials of the warm start, from a sweep's journal."""
    records = record.journal.records()
    starts = [one["time_ms"] for one in records if one["kind"] in ("run", "resumed")]
    times = [
        one["time_ms"] for folder in (record.folder, *trial_dirs(record.folder)) for one in Journal(folder).records()
    ]
    spent = sum(
        max(time for time in times if start <= time < end) - start for start, end in pairwise(starts)
    )  # the journals of the trials show more precisely when the sweep was killed
    known = tuple(PriorTrial(values, found) for values, found in records[0]["known"])
    return records[0]["key"], spent / 1000, known


def _check_scheduler(config: Config) -> None:
    """Validates the settings of the scheduler.

    Raises:
        ConfigError: the scheduler has no validation to decide from, or cannot change a setting of the search space.
    """
    tune, train = config.tune, config.train
    build_scheduler(config)
    if tune.scheduler in ("asha", "median") and train.val_every >= train.steps:
        raise ConfigError(
            f"train.val_every is {train.val_every}, and a trial has {train.steps} steps: tune.scheduler "
            f"{tune.scheduler} has nothing to compare before the end; use --train.val_every "
            f"{max(1, train.steps // 20)}, or --tune.scheduler none."
        )
    if tune.scheduler == "asha" and not rung_steps(grace_period(config), train.val_every, train.steps):
        raise ConfigError(f"tune.grace is {tune.grace}; expected fewer than train.steps, {train.steps}.")
    if tune.scheduler == "median" and grace_period(config) >= train.steps:
        raise ConfigError(f"tune.grace is {tune.grace}; expected fewer than train.steps, {train.steps}.")
    if tune.scheduler == "pbt":
        if max(perturbation_interval(config), train.val_every) >= train.steps:
            raise ConfigError(
                f"tune.interval is {perturbation_interval(config)} and train.val_every {train.val_every}; expected "
                f"both below train.steps, {train.steps}: nobody would ever copy."
            )
        fixed = [one.key for one in space.dimensions(config) if not one.key.startswith(PBT_SECTIONS)]
        if fixed:
            raise ConfigError(
                f"tune.space names {fixed[0]}, which a trial keeps while it is trained; with tune.scheduler pbt "
                f"expected settings of {', '.join(name.rstrip('.') for name in PBT_SECTIONS)}; use asha."
            )


def _named(config: Config, manifest: Manifest, resume: str | None, say: Callable[[str], None]) -> Path | None:
    """Returns the folder of the sweep to resume, or `None` for a new sweep.

    Raises:
        ResumeError: the folder contains no sweep, a sweep with other settings, or a finished one.
    """
    if resume is None:
        return None
    if resume == paths.RESUME_LATEST:
        found = _latest(config, manifest)
        if found is None:
            say(f"no unfinished sweep with these settings in {config.results}: a new one is started.")
        return found
    folder = Path(paths.absolute_path("--resume", resume))
    if not (folder / JOURNAL).exists() or not (folder / checkpoint.CONFIG).exists():
        raise ResumeError(
            f"--resume is {resume}, which holds no sweep; expected a folder with {JOURNAL} in it, or auto."
        )
    differ = _differences(folder, config, manifest)
    if differ:
        raise ResumeError(f"{folder.name} is a sweep of other settings:{format_list(differ)}\nStart a new one.")
    if is_finished(folder) and not _is_cut_short(folder):
        raise ResumeError(f"--resume is {resume}, a sweep that is finished; start another.")
    return folder


def _is_cut_short(folder: Path) -> bool:
    """Returns True if a sweep ended because its budget was exhausted, so it can resume with a larger one."""
    ends = [record for record in Journal(folder).records() if record["kind"] == "end"]
    return bool(ends) and ends[-1].get("cut_short") is not None


def _latest(config: Config, manifest: Manifest) -> Path | None:
    found = sorted(Path(config.results).glob(f"{config.name or '*'}/{JOURNAL}"), key=lambda path: -path.stat().st_mtime)
    return next((path.parent for path in found if _goes_on(path.parent, config, manifest)), None)


def _goes_on(folder: Path, config: Config, manifest: Manifest) -> bool:
    try:
        return not (_differences(folder, config, manifest) or is_finished(folder) or is_locked(folder))
    except CheckpointError:
        return False


def _differences(folder: Path, config: Config, manifest: Manifest) -> list[str]:
    """Returns the forbidden differences from the settings and data of a stored sweep, one line each."""
    stored = checkpoint.load_config(folder)
    if not stored.tune.space:
        return ["it is no sweep, but a run of its own"]
    pairs = {
        key: (_decisive(stored).get(key), _decisive(config).get(key)) for key in {**flatten(stored), **flatten(config)}
    }
    digest = SweepJournal(folder, config.tune.metric).journal.records()[0]["dataset"]["digest"]
    pairs["dataset"] = digest, manifest.digest
    return [f"{key}: {theirs} so far, {ours} now" for key, (theirs, ours) in pairs.items() if theirs != ours]


def _decisive(config: Config) -> dict[str, object]:
    own = {key: value for key, value in flatten(config).items() if key.startswith("tune.")}
    return config.training_settings() | {
        key: value for key, value in own.items() if not key.startswith(CHANGEABLE_ON_RESUME)
    }
