"""Run setup: checks everything that can fail before training starts, and creates the run folder."""

import subprocess
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import ray
from torch import Tensor

from segray.cluster import resources
from segray.cluster.connect import connect
from segray.cluster.nodes import SPOT_LABEL, is_preemptible, potential_nodes
from segray.config import Config, flatten, paths
from segray.core.errors import DataError
from segray.data.augment.augmenter import validate_augment, validate_transforms
from segray.data.class_balance import draws_per_epoch
from segray.data.manifest import Manifest, Split, read_manifest
from segray.data.reader import SplitReader
from segray.models import checkpoint
from segray.models.build import build_model
from segray.models.weights.load import load_pretrained
from segray.tracking.journal import Journal
from segray.tracking.registry import open_checkpoint
from segray.training.losses.build import build_loss
from segray.training.preflight import preflight
from segray.training.resume import (
    diff_settings,
    find_latest_run,
    require_matching_weights,
    require_resumable,
    resolve_run,
)
from segray.training.run_spec import RunSpec
from segray.training.runs import lock_run
from segray.training.score import validate_score
from segray.training.trial_context import TrialContext

FOLDER_TAG = "segray.folder"
NOT_RUN_SECTIONS = ("promote.", "serve.")
VARIANT = "{variant}"  # placeholder in model.init


@dataclass(frozen=True)
class PreparedRun:
    """Checked run with an existing folder.

    Attributes:
        job: run specification for the workers.
        tracking_uri: MLflow store of the run and the model, including the password.
        is_new: `True` if the folder was created for this run.
        lock: file lock that prevents other processes from training the run.
    """

    job: RunSpec
    tracking_uri: str
    is_new: bool
    lock: IO[str]

    @property
    def config(self) -> Config:
        """Settings of the run, with resolved paths."""
        return self.job.config

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.job.folder

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.job.folder.name


def prepare_run(
    config: Config,
    resume: str | None,
    allowed: Collection[str],
    say: Callable[[str], None],
    trial: TrialContext | None = None,
) -> PreparedRun:
    """Checks a new or resumed run and starts or continues its journal.

    A resumed run is locked before it is inspected, so that no other process changes it afterwards.

    Args:
        config: settings of the run.
        resume: "auto", a run folder or its latest checkpoint; `None` starts a new run.
        allowed: names of settings that may differ from those of the resumed run.
        say: callback that receives the few lines meant for the user.
        trial: sweep context, if the run is a trial.

    Returns:
        Run that is ready to train.

    Raises:
        UserError: the run cannot work.
    """
    target = _resolve(config, resume, trial, say)
    with ExitStack() as on_error:
        lock = None if target.run is None else on_error.enter_context(lock_run(target.run))
        changes = _compare_settings(target, resume, allowed)
        train = validate_splits(target.config, target.manifest)
        weights = _load_weights(target, say, {} if trial is None else trial.initial_weights)
        connect()
        placement = _allocate_workers(target, say) if trial is None else trial.placement
        draws_per_row = draws_per_epoch(SplitReader(target.config.data.root, train), target.config.data)
        initial_weights = None if weights is None else ray.put(weights)  # other nodes may not see the file
        folder = target.run or Path(paths.create_run_dir(target.config)[1])
        if lock is None:
            lock = on_error.enter_context(lock_run(folder))
        named = target.config.model_copy(update={"name": folder.name, "results": str(folder.parent)})
        job = RunSpec(named, target.manifest, placement, folder, draws_per_row, initial_weights)
        if trial is not None:
            job = replace(job, shared_splits=trial.shared_splits, heartbeat_monitor=trial.heartbeat_monitor)
        _write_start(job, target.run is None, changes, say, trial)
        on_error.pop_all()  # the caller releases the lock
    return PreparedRun(job, target.tracking_uri, target.run is None, lock)


@dataclass(frozen=True)
class _RunTarget:
    """Run to start or to resume, before any check.

    Attributes:
        config: settings with resolved paths.
        tracking_uri: MLflow store of the run and the model, including the password.
        manifest: manifest of the dataset.
        run: folder of the run to resume; `None` starts a new run.
    """

    config: Config
    tracking_uri: str
    manifest: Manifest
    run: Path | None


def _resolve(config: Config, resume: str | None, trial: TrialContext | None, say: Callable[[str], None]) -> _RunTarget:
    """Resolves the paths of the settings and the run to resume. For a trial, the sweep has resolved the paths."""
    if trial is None:
        config, tracking_uri = paths.resolve_paths(config), paths.tracking_uri(config)
    else:
        tracking_uri = trial.tracking_uri
    run = None if resume in (None, paths.RESUME_LATEST) else resolve_run(str(resume))
    manifest = read_manifest(config.data.root)
    if resume == paths.RESUME_LATEST:
        run = find_latest_run(config, manifest.digest)
        if run is None:
            say(f"{config.results} contains no unfinished run with these settings; starting a new run.")
    return _RunTarget(config, tracking_uri, manifest, run)


def _compare_settings(target: _RunTarget, resume: str | None, allowed: Collection[str]) -> list[str]:
    """Returns a line for each setting of a resumed run that has changed."""
    if target.run is None:
        return []
    require_resumable(target.run, str(resume))
    return diff_settings(target.run, target.config, target.manifest, allowed)


def validate_splits(config: Config, manifest: Manifest) -> Split:
    """Checks the data and loss settings against the dataset and returns the training split.

    Raises:
        UserError: training is not possible; the message names the setting at fault.
    """
    for name in (config.data.train_split, config.data.val_split):
        if manifest.split(name).rows == 0:
            raise DataError(f"split '{name}' of {config.data.root} is empty; expected at least one row.")
    config.with_eval_overrides(config.eval.model_dump())  # the windows, with the default of data.crop
    train = manifest.split(config.data.train_split)
    validate_augment(config.data)
    if config.data.augment is not None:
        for height, width in SplitReader(config.data.root, train).min_sizes():
            validate_transforms(config.data, height, width, manifest.classes.ignore_id)
    build_loss(config.loss, manifest.classes.num_classes, train.class_pixels)
    validate_score(config, manifest)
    return train


def initial_weights_reference(config: Config) -> str | None:
    """Returns the source of the initial weights with the name of the variant, or `None` if `model.init` is not set."""
    return None if config.model.init is None else config.model.init.replace(VARIANT, config.model.variant)


def _load_weights(
    target: _RunTarget, say: Callable[[str], None], downloads: Mapping[str, Path]
) -> dict[str, Tensor] | None:
    """Returns the initial state dict for every rank, or `None` if `model.init` is not set.

    Always builds the model, so that invalid model settings fail here.

    Args:
        target: run to start or to resume.
        say: callback that receives the few lines meant for the user.
        downloads: checkpoint folders of registered versions that the sweep of a trial has downloaded, by reference.
    """
    model = build_model(target.config, target.manifest.classes)
    if target.run is not None:
        require_matching_weights(target.run, model)
    reference = initial_weights_reference(target.config)
    if reference is None:
        return None
    with open_checkpoint(str(downloads.get(reference, reference)), target.tracking_uri) as source:
        say(f"initial weights: {load_pretrained(model, str(source), part='auto')}")
    return model.state_dict()


def _allocate_workers(target: _RunTarget, say: Callable[[str], None]) -> resources.WorkerResources:
    """Returns the resources of each worker, after the checks of the cluster."""
    if is_preemptible():
        say(
            "the driver and the controller of the run are on a node that may be preempted; to place them on another "
            f'node, use `ray job submit --entrypoint-label-selector \'{{"{SPOT_LABEL}": "!spot"}}\'`.'
        )
    train = target.config.train
    placement = resources.allocate_workers(
        potential_nodes(), train.workers, train.device, min_workers=train.min_workers
    )
    preflight(target.config, target.tracking_uri, target.manifest, say, is_resumed=target.run is not None)
    return placement


def _write_start(
    job: RunSpec, is_new: bool, changes: list[str], say: Callable[[str], None], trial: TrialContext | None
) -> None:
    """Starts the journal of a new run, or continues the journal of a resumed run."""
    journal = Journal(job.folder)
    text = job.config.model_dump_json(indent=2)
    (job.folder / checkpoint.CONFIG).write_text(text)
    if is_new:
        journal.write(
            "run", **run_entry(job.config, job.folder, job.manifest), **(trial.journal_fields if trial else {})
        )
        journal.write("text", name=checkpoint.CONFIG, text=text)
        return
    journal.write("resumed", dataset={"digest": job.manifest.digest})
    for change in changes:
        say(f"changed: {change}")
    if changes:
        journal.write("text", name=f"config-from-step-{journal.last_step()}.json", text=text)


def run_entry(config: Config, folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Returns the first record of the journal of a run."""
    commit = git_commit()
    return {
        "key": uuid4().hex,
        "name": folder.name,
        "experiment": config.tracking.experiment,
        "params": {key: value for key, value in flatten(config).items() if is_run_param(key, bool(config.tune.space))},
        "tags": {FOLDER_TAG: str(folder)} | ({"mlflow.source.git.commit": commit} if commit else {}),
        "dataset": {
            "name": Path(config.data.root.partition("?")[0]).name,
            "digest": manifest.digest,
            "root": config.data.root,
        },
    }


def is_run_param(key: str, is_sweep: bool) -> bool:
    """Returns `True` if a setting is a parameter of a run or, with `is_sweep`, of a sweep.

    Settings of later stages (promotion and serving) never are; tune settings are parameters of a sweep only.
    """
    return not key.startswith(NOT_RUN_SECTIONS) and (is_sweep or not key.startswith("tune."))


def git_commit() -> str | None:
    """Returns the commit of the working directory, or `None` outside a git repository.

    The commit has the suffix "-dirty" if files differ from it.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
