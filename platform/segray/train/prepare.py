"""Before a run: everything that can be known to fail is tried, and the run has its folder."""

import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import ray
from torch import Tensor

from segray import capacity, checkpoint, cluster, losses, places, registry
from segray.classes import Classes
from segray.config import Config, flat
from segray.data import augment
from segray.data.pieces import Source
from segray.data.samplers import draw_times
from segray.data.schema import Manifest, Split, read_manifest
from segray.doctor.preflight import preflight
from segray.errors import DataError
from segray.model.weights import load
from segray.tracking.journal import Journal
from segray.train import resume as resuming
from segray.train.job import Job
from segray.train.part import Part

FOLDER_TAG = "segray.folder"
LATER = ("promote.", "serve.")
VARIANT = "{variant}"  # in model.init


@dataclass(frozen=True)
class Prepared:
    """A run that was checked and has its folder.

    Attributes:
        job: what its workers are told.
        tracking_uri: MLflow store of run and model, its password included.
        is_new: whether the folder was made for it.
        lock: that keeps others from training it.
    """

    job: Job
    tracking_uri: str
    is_new: bool
    lock: IO[str]

    @property
    def config(self) -> Config:
        """The run's settings, its places settled."""
        return self.job.config

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.job.folder

    @property
    def name(self) -> str:
        """The run's name."""
        return self.job.folder.name


def prepare(
    config: Config,
    resume: str | None,
    allowed: Collection[str],
    say: Callable[[str], None],
    part: Part | None = None,
) -> Prepared:
    """Returns the run to train, new or gone on with, its journal begun.

    Args:
        config: the run.
        resume: "auto", a run's folder or its latest checkpoint; none starts a new run.
        allowed: what may differ from a resumed run's start.
        say: called with the few lines a person should read.
        part: of the sweep that the run is part of.

    Raises:
        UserError: the run cannot work.
    """
    settled, tracking_uri = _settled(config, part)
    folder = None if resume in (None, resuming.AUTO) else resuming.named(str(resume))
    manifest = read_manifest(settled.data.root)
    if resume == resuming.AUTO:
        folder = resuming.latest(settled, manifest.digest)
    if resume is not None and folder is None:
        say(f"no unfinished run with these settings in {settled.results}: a new one is started.")
    train = check_trainable(settled, manifest)
    changes = [] if folder is None else resuming.check(folder, settled, manifest, allowed)
    weights = _weights(settled, manifest.classes, folder, tracking_uri, say)
    cluster.connect()
    placement = _placed(settled, manifest, tracking_uri, say, folder) if part is None else part.placement
    times = draw_times(Source(settled.data.root, train), settled.data)
    init = None if weights is None else ray.put(weights)  # a node of the cluster may not see the file
    is_new = folder is None
    if folder is None:
        _, made = places.new_run_folder(settled)
        folder = Path(made)
    lock = resuming.hold(folder)
    named = settled.model_copy(update={"name": folder.name, "results": str(folder.parent)})
    job = Job(named, manifest, placement, folder, times, init)
    if part is not None:
        job = replace(job, shared=part.shared, pulse=part.pulse)
    _begin(job, is_new, changes, say, part)
    return Prepared(job, tracking_uri, is_new, lock)


def _settled(config: Config, part: Part | None) -> tuple[Config, str]:
    """Returns the settings with their places settled, and the MLflow store: a sweep did that for its runs."""
    if part is not None:
        return config, part.tracking_uri
    return places.settled(config), places.tracking_uri(config)


def _placed(
    config: Config, manifest: Manifest, uri: str, say: Callable[[str], None], folder: Path | None
) -> capacity.Placement:
    _warn_of_preemption(say)
    wanted = config.train
    placement = capacity.place(cluster.nodes(), wanted.workers, wanted.device, least=wanted.min_workers)
    preflight(config, uri, manifest, say, goes_on=folder is not None)
    return placement


def _warn_of_preemption(say: Callable[[str], None]) -> None:
    if cluster.is_preemptible():
        say(
            "the driver runs on a node that may be preempted, and the run's controller beside it: keep it on another, "
            f'with `ray job submit --entrypoint-label-selector \'{{"{cluster.MARKET_LABEL}": "!spot"}}\'`.'
        )


def check_trainable(config: Config, manifest: Manifest) -> Split:
    """Returns the split to train on, once it is known that it can be.

    Raises:
        UserError: it cannot; the setting at fault is named.
    """
    for name in (config.data.train_split, config.data.val_split):
        if manifest.split(name).rows == 0:
            raise DataError(f"split '{name}' of {config.data.root} is empty; expected at least one row.")
    train = manifest.split(config.data.train_split)
    if config.data.augment is not None:
        for height, width in Source(config.data.root, train).smallest():
            augment.check(config.data, height, width, manifest.classes.ignore_id)
    losses.build(config.loss, manifest.classes.num_classes, train.class_pixels)
    return train


def _weights(
    config: Config, classes: Classes, run: Path | None, tracking_uri: str, say: Callable[[str], None]
) -> dict[str, Tensor] | None:
    """Returns the state dict that every rank starts from, if one is given.

    Builds the model in any case, so that what cannot work fails here.
    """
    model = checkpoint.build_model(config, classes)
    if run is not None:
        resuming.check_fits(run, model)
    if config.model.init is None:
        return None
    source = registry.fetch(config.model.init.replace(VARIANT, config.model.variant), tracking_uri)
    say(f"start: {load(model, str(source), part='auto')}")
    return model.state_dict()


def _begin(job: Job, is_new: bool, changes: list[str], say: Callable[[str], None], part: Part | None) -> None:
    """Begins the run's journal, or goes on with it."""
    journal = Journal(job.folder)
    text = job.config.model_dump_json(indent=2)
    (job.folder / checkpoint.CONFIG).write_text(text)
    if is_new:
        journal.write("run", **run_record(job.config, job.folder, job.manifest), **(part.record if part else {}))
        journal.write("text", name=checkpoint.CONFIG, text=text)
        return
    journal.write("resumed", dataset={"digest": job.manifest.digest})
    for change in changes:
        say(f"changed: {change}")
    if changes:
        journal.write("text", name=f"config-from-step-{journal.last_step()}.json", text=text)


def run_record(config: Config, folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Returns the first record of a run's journal."""
    commit = git_commit()
    return {
        "key": uuid4().hex,
        "name": folder.name,
        "experiment": config.tracking.experiment,
        "params": {key: value for key, value in flat(config).items() if is_of_run(key, bool(config.tune.space))},
        "tags": {FOLDER_TAG: str(folder)} | ({"mlflow.source.git.commit": commit} if commit else {}),
        "dataset": {
            "name": Path(config.data.root.partition("?")[0]).name,
            "digest": manifest.digest,
            "root": config.data.root,
        },
    }


def is_of_run(key: str, is_sweep: bool) -> bool:
    """Returns whether a run, or a sweep, has a use for a setting; what comes after both is no matter of theirs."""
    return not key.startswith(LATER) and (is_sweep or not key.startswith("tune."))


def git_commit() -> str | None:
    """Returns the commit of the working directory, marked where files differ from it; none outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
