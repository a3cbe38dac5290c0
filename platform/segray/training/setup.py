"""Run setup: checks everything that can fail before training starts, and creates the run folder."""

import subprocess
from collections.abc import Callable, Collection
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
from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.data.augment.augmenter import validate_augment, validate_transforms
from segray.data.class_balance import draws_per_epoch
from segray.data.manifest import Manifest, Split, read_manifest
from segray.data.reader import SplitReader
from segray.models import checkpoint
from segray.models.build import build_model
from segray.models.weights.load import load_pretrained
from segray.tracking.journal import Journal
from segray.tracking.registry import download_checkpoint
from segray.training import resume as resuming
from segray.training.losses.build import build_loss
from segray.training.preflight import preflight
from segray.training.run_spec import RunSpec
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
    part: TrialContext | None = None,
) -> PreparedRun:
    """Checks a new or resumed run and starts or continues its journal.

    Args:
        config: settings of the run.
        resume: "auto", a run folder or its latest checkpoint; `None` starts a new run.
        allowed: names of settings that may differ from those of the resumed run.
        say: callback that receives the few lines meant for the user.
        part: sweep context, if the run is a trial.

    Returns:
        Run that is ready to train.

    Raises:
        UserError: the run cannot work.
    """
    settled, tracking_uri = _settled(config, part)
    folder = None if resume in (None, paths.RESUME_LATEST) else resuming.resolve_run(str(resume))
    manifest = read_manifest(settled.data.root)
    if resume == paths.RESUME_LATEST:
        folder = resuming.find_latest_run(settled, manifest.digest)
    if resume is not None and folder is None:
        say(f"no unfinished run with these settings in {settled.results}: a new one is started.")
    train = validate_splits(settled, manifest)
    changes = [] if folder is None else resuming.diff_settings(folder, settled, manifest, allowed)
    weights = _weights(settled, manifest.classes, folder, tracking_uri, say)
    connect()
    placement = _placed(settled, manifest, tracking_uri, say, folder) if part is None else part.placement
    times = draws_per_epoch(SplitReader(settled.data.root, train), settled.data)
    init = None if weights is None else ray.put(weights)  # other nodes may not see the file
    is_new = folder is None
    if folder is None:
        _, made = paths.create_run_dir(settled)
        folder = Path(made)
    lock = resuming.lock_run(folder)
    named = settled.model_copy(update={"name": folder.name, "results": str(folder.parent)})
    job = RunSpec(named, manifest, placement, folder, times, init)
    if part is not None:
        job = replace(job, shared_splits=part.shared, heartbeat=part.pulse)
    _begin(job, is_new, changes, say, part)
    return PreparedRun(job, tracking_uri, is_new, lock)


def _settled(config: Config, part: TrialContext | None) -> tuple[Config, str]:
    """Returns the settings with resolved paths, and the MLflow store. For a trial, the sweep has resolved both."""
    if part is not None:
        return config, part.tracking_uri
    return paths.resolve_paths(config), paths.tracking_uri(config)


def _placed(
    config: Config, manifest: Manifest, uri: str, say: Callable[[str], None], folder: Path | None
) -> resources.WorkerResources:
    _warn_of_preemption(say)
    wanted = config.train
    placement = resources.allocate_workers(potential_nodes(), wanted.workers, wanted.device, least=wanted.min_workers)
    preflight(config, uri, manifest, say, goes_on=folder is not None)
    return placement


def _warn_of_preemption(say: Callable[[str], None]) -> None:
    if is_preemptible():
        say(
            "the driver runs on a node that may be preempted, and the run's controller beside it: keep it on another, "
            f'with `ray job submit --entrypoint-label-selector \'{{"{SPOT_LABEL}": "!spot"}}\'`.'
        )


def validate_splits(config: Config, manifest: Manifest) -> Split:
    """Checks the data and loss settings against the dataset and returns the training split.

    Raises:
        UserError: training is not possible; the message names the setting at fault.
    """
    for name in (config.data.train_split, config.data.val_split):
        if manifest.split(name).rows == 0:
            raise DataError(f"split '{name}' of {config.data.root} is empty; expected at least one row.")
    train = manifest.split(config.data.train_split)
    validate_augment(config.data)
    if config.data.augment is not None:
        for height, width in SplitReader(config.data.root, train).min_sizes():
            validate_transforms(config.data, height, width, manifest.classes.ignore_id)
    build_loss(config.loss, manifest.classes.num_classes, train.class_pixels)
    return train


def _weights(
    config: Config, classes: Classes, run: Path | None, tracking_uri: str, say: Callable[[str], None]
) -> dict[str, Tensor] | None:
    """Returns the initial state dict for every rank, or `None` if `model.init` is not set.

    Always builds the model, so that invalid model settings fail here.
    """
    model = build_model(config, classes)
    if run is not None:
        resuming.require_matching_weights(run, model)
    if config.model.init is None:
        return None
    source = download_checkpoint(config.model.init.replace(VARIANT, config.model.variant), tracking_uri)
    say(f"start: {load_pretrained(model, str(source), part='auto')}")
    return model.state_dict()


def _begin(
    job: RunSpec, is_new: bool, changes: list[str], say: Callable[[str], None], part: TrialContext | None
) -> None:
    """Starts the journal of a new run, or continues the journal of a resumed run."""
    journal = Journal(job.folder)
    text = job.config.model_dump_json(indent=2)
    (job.folder / checkpoint.CONFIG).write_text(text)
    if is_new:
        journal.write("run", **run_entry(job.config, job.folder, job.manifest), **(part.journal_fields if part else {}))
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
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
