"""The driver of a run: check first, then a TorchTrainer, its journal, and the best checkpoint registered."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import ray
import ray.train
from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from torch import Tensor

from segray import capacity, checkpoint, cluster, losses, places, registry
from segray.classes import Classes
from segray.config import Config, flat
from segray.data import augment
from segray.data.pieces import Source
from segray.data.samplers import draw_times
from segray.data.schema import Manifest, read_manifest
from segray.errors import DataError, TrainingError, UserError
from segray.metrics import Scores, scores
from segray.model.weights import load
from segray.tracking import Journal, Upload, Uploading
from segray.train.report import JournalReports
from segray.train.trainer import Trainer
from segray.train.worker import Job, work

METRIC = "val/miou"
FOLDER_TAG = "segray.folder"


@dataclass(frozen=True)
class Result:
    """What a finished run left.

    Attributes:
        name: of the run.
        folder: of the run, absolute.
        checkpoint: folder of the best checkpoint.
        step: of the best checkpoint.
        scores: of its validation.
        tracking_uri: MLflow store of run and model.
        run_id: MLflow's id, none if MLflow was away.
        model: name the checkpoint is registered under.
        version: its version there, none if MLflow was away.
    """

    name: str
    folder: str
    checkpoint: str
    step: int
    scores: Scores
    tracking_uri: str
    run_id: str | None
    model: str
    version: str | None


@dataclass(frozen=True)
class Prepared:
    """A run that was checked and has its folder."""

    config: Config
    name: str
    folder: Path
    tracking_uri: str
    job: Job


def fit(config: Config, say: Callable[[str], None] = print, watch: Callable[[Path], None] | None = None) -> Result:
    """Trains, validates, tracks and registers what the Config describes.

    Args:
        config: the run.
        say: called with the few lines a person should read.
        watch: called with the run's folder before training starts, to follow its journal.

    Raises:
        UserError: the run cannot work; no folder is left behind.
        TrainingError: it started and failed; what it had is in its folder.
    """
    prepared = _prepare(config, say)
    say(f"run {prepared.name}: {prepared.job.placement}")
    journal = Journal(prepared.folder)
    journal.write("run", **_run_record(prepared))
    journal.write("text", name="config.json", text=prepared.config.model_dump_json(indent=2))
    if watch is not None:
        watch(prepared.folder)
    upload = Upload(prepared.folder, prepared.tracking_uri)
    with _tracked(prepared, journal, upload, say):
        best = _train(prepared)
        journal.write("model", folder=str(best), name=config.tracking.model, aliases=[registry.CHALLENGER])
    return _result(prepared, best, upload)


@contextmanager
def _tracked(prepared: Prepared, journal: Journal, upload: Upload, say: Callable[[str], None]) -> Iterator[None]:
    """Uploads the journal beside the training, and ends the run in it with what became of it."""
    uploading = Uploading(upload, say)
    uploading.start()
    status, keep = "FAILED", True
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except UserError:
        keep = any(prepared.folder.glob(f"*/{checkpoint.META}"))
        raise
    finally:
        journal.write("end", status=status)
        if not uploading.finish() and keep:
            say(f"what {prepared.tracking_uri} lacks is uploaded later by `segray sync {prepared.folder}`.")
        if not keep:
            shutil.rmtree(prepared.folder)


def _prepare(config: Config, say: Callable[[str], None]) -> Prepared:
    """Returns the run, after everything that can be known to fail was tried."""
    settled = places.settled(config)
    manifest = read_manifest(settled.data.root)
    _check_splits(settled, manifest)
    losses.named(settled.model.loss)
    weights = _initial_weights(settled, manifest.classes, say)
    cluster.connect()
    placement = capacity.place(cluster.nodes(), settled.train.workers, settled.train.device)
    times = draw_times(Source(settled.data.root, manifest.split(settled.data.train_split)), settled.data)
    init = None if weights is None else ray.put(weights)  # a node of the cluster may not see the file
    name, folder = places.new_run_folder(settled)
    named = settled.model_copy(update={"name": name})
    job = Job(named, manifest, placement, times, init)
    return Prepared(named, name, Path(folder), places.tracking_uri(named), job)


def _initial_weights(config: Config, classes: Classes, say: Callable[[str], None]) -> dict[str, Tensor] | None:
    """Returns the state dict that every rank starts from; builds the model in any case, so that it fails here."""
    model = checkpoint.build_model(config, classes)
    if config.model.init is None:
        return None
    source = registry.fetch(config.model.init, places.tracking_uri(config))
    say(f"start: {load(model, str(source), part='auto')}")
    return model.state_dict()


def _check_splits(config: Config, manifest: Manifest) -> None:
    for name in (config.data.train_split, config.data.val_split):
        if manifest.split(name).rows == 0:
            raise DataError(f"split '{name}' of {config.data.root} is empty; expected at least one row.")
    if config.data.augment is not None:
        for height, width in Source(config.data.root, manifest.split(config.data.train_split)).smallest():
            augment.check(config.data, height, width, manifest.classes.ignore_id)


def _run_record(prepared: Prepared) -> dict[str, object]:
    config, manifest = prepared.config, prepared.job.manifest
    commit = git_commit()
    return {
        "key": uuid4().hex,
        "name": prepared.name,
        "experiment": config.tracking.experiment,
        "params": flat(config),
        "tags": {FOLDER_TAG: str(prepared.folder)} | ({"mlflow.source.git.commit": commit} if commit else {}),
        "dataset": {
            "name": Path(config.data.root.partition("?")[0]).name,
            "digest": manifest.digest,
            "root": config.data.root,
        },
    }


def git_commit() -> str | None:
    """Returns the commit of the working directory, marked where files differ from it; none outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _train(prepared: Prepared) -> Path:
    """Returns the folder of the best checkpoint of the run."""
    placement, config = prepared.job.placement, prepared.config
    resources = {"CPU": placement.cpus} | ({"GPU": placement.gpus} if placement.gpus else {})
    trainer = Trainer(
        work,
        train_loop_config={"job": prepared.job},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.gpus > 0,
            resources_per_worker=resources,
            placement_strategy="PACK" if placement.gpus else "SPREAD",
        ),
        run_config=RunConfig(
            name=prepared.name,
            storage_path=config.results,
            callbacks=[JournalReports(str(prepared.folder))],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=METRIC, checkpoint_score_order="max"
            ),
        ),
    )
    try:
        result = trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        raise cluster.cause(error) or TrainingError(f"run {prepared.name} failed: {error}") from error
    except SystemExit as stopped:  # how Ray Train ends a run at Ctrl-C, with exit code 0
        raise KeyboardInterrupt from stopped
    kept = [(metrics[METRIC], Path(found.path)) for found, metrics in result.best_checkpoints or []]
    if not kept:
        raise TrainingError(f"run {prepared.name} ended before its first validation; its folder is {prepared.folder}.")
    return max(kept)[1]


def _result(prepared: Prepared, best: Path, upload: Upload) -> Result:
    meta = checkpoint.load_meta(best)
    classes: Classes = prepared.job.manifest.classes
    return Result(
        name=prepared.name,
        folder=str(prepared.folder),
        checkpoint=str(best),
        step=meta.step,
        scores=scores(np.asarray(meta.confusion), classes.names),
        tracking_uri=prepared.tracking_uri,
        run_id=upload.run_id,
        model=prepared.config.tracking.model,
        version=upload.version,
    )
