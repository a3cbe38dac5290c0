"""The driver of a run: check first, then a TorchTrainer, its journal, and the best checkpoint registered."""

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray.cluster.exceptions import root_cause
from segray.config import Config, paths
from segray.core.errors import RunStoppedError, TrainingError, UserError
from segray.core.signals import handle_signals
from segray.evaluation.metrics.scores import Scores, scores_from_confusion
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.tracking.registry import CHALLENGER
from segray.tracking.uploader import RunUploader, UploadThread
from segray.training import checkpoint_store
from segray.training.heartbeat import HangWatchdog, HeartbeatMonitor
from segray.training.ray_trainer import SegrayTrainer
from segray.training.reporting import JournalCallback
from segray.training.setup import PreparedRun, prepare_run
from segray.training.shutdown import RegisterController, StopRequest, stop_on_request
from segray.training.trial_context import TrialContext
from segray.training.worker import train_loop_per_worker

RAY_FOLDER = "ray"
START_TIMEOUT_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_TIMEOUT_S = {False: "1800", True: "20"}
"""How long workers are waited for, by whether there may be fewer: a cloud's nodes take minutes, and with fewer a run
looks anew how many there are."""


@dataclass(frozen=True)
class TrainResult:
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


def fit(
    config: Config,
    *,
    resume: str | None = None,
    allowed: Collection[str] = (),
    say: Callable[[str], None] = print,
    watch: Callable[[Path], None] | None = None,
    part: TrialContext | None = None,
    stop: StopRequest | None = None,
) -> TrainResult:
    """Trains, validates, tracks and registers what the Config describes.

    Args:
        config: the run.
        resume: goes on with a run: "auto", its folder or its latest checkpoint; none starts a new one.
        allowed: settings (or "dataset", "classes") that may differ from a resumed run's, though they decide what is
            learned.
        say: called with the few lines a person should read.
        watch: called with the run's folder before training starts, to follow its journal.
        part: of the sweep that the run is part of, which uploads its journal and registers models.
        stop: asks the run to end, as Ctrl-C and SIGTERM do.

    Raises:
        UserError: the run cannot work; no folder is left behind.
        StoppedError: it was asked to end; it goes on with `resume`.
        TrainingError: it started and failed; what it had is in its folder.
    """
    prepared = prepare_run(config, resume, allowed, say, part)
    say(f"run {prepared.name}: {prepared.job.placement}")
    if not prepared.is_new:
        say(_goes_on(prepared, say))
    if watch is not None:
        watch(prepared.folder)
    upload = None if part else RunUploader(prepared.folder, prepared.tracking_uri, say)
    with prepared.lock, _tracked(prepared, upload, say) as journal:
        best = _train(prepared, journal, stop or StopRequest(), say)
        if part is None:
            queue_registration(journal, best, config.tracking.model)
    return _result(prepared, best, upload)


def queue_registration(journal: Journal, checkpoint_folder: Path, model: str) -> None:
    """Has the upload of a run register one of its checkpoints, as the challenger.

    Args:
        journal: of the run.
        checkpoint_folder: in the run's folder.
        model: name to register it under.
    """
    journal.write("model", folder=checkpoint_folder.name, name=model, aliases=[CHALLENGER])


def _goes_on(prepared: PreparedRun, say: Callable[[str], None]) -> str:
    whole = checkpoint_store.list_checkpoints(prepared.folder, warn=say)
    return f"goes on from step {whole[-1].step}." if whole else "has no checkpoint yet: it begins at step 0."


@contextmanager
def _tracked(prepared: PreparedRun, upload: RunUploader | None, say: Callable[[str], None]) -> Iterator[Journal]:
    """Uploads the journal beside the training, if that is ours to do, and ends the run in it with what became of it."""
    journal = Journal(prepared.folder)
    uploading = None if upload is None else UploadThread(upload, say)
    if uploading is not None:
        uploading.start()
    status, keep = "FAILED", True
    try:
        yield journal
        status = "FINISHED"
    except (KeyboardInterrupt, RunStoppedError):
        status = "KILLED"
        raise
    except UserError:
        is_empty = prepared.is_new and not any(prepared.folder.glob(f"*/{checkpoint.META}"))
        keep = upload is None or not is_empty  # whoever uploads a sweep may have begun with it
        raise
    finally:
        _write_end(journal, status, say)
        if uploading is not None and not uploading.close() and keep:
            uri = paths.redact(prepared.tracking_uri)
            say(f"what {uri} lacks is uploaded later by `segray tracking sync {prepared.folder}`.")
        if not keep:
            shutil.rmtree(prepared.folder)


def _write_end(journal: Journal, status: str, say: Callable[[str], None]) -> None:
    """Writes the run's end, or says why not: the run has an error of its own, which is not to be hidden."""
    try:
        journal.write("end", status=status)
    except OSError as error:
        say(f"the run's end, {status}, cannot be written to {journal.path} ({error.strerror}).")


def _train(prepared: PreparedRun, journal: Journal, stop: StopRequest, say: Callable[[str], None]) -> Path:
    """Returns the folder of the best checkpoint of the run."""
    pulse = prepared.job.heartbeat or create_heartbeat_actor()
    pulse.reset.remote()
    watching = HangWatchdog(pulse, prepared.config.train.hang_s, lambda line: journal.write("event", text=line))
    watching.start()
    try:
        with (
            handle_signals(lambda: stop.request(paths.job_stop_timeout_s()), stop.force),
            stop_on_request(stop, pulse, say),
            _waiting(_is_elastic(prepared.config)),
        ):
            _trainer(prepared, pulse).fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        cause = root_cause(error)
        if stop.requested and (cause is None or isinstance(cause, RunStoppedError)):
            raise RunStoppedError(_stopped(prepared)) from error
        raise cause or TrainingError(f"run {prepared.name} failed: {error}") from error
    finally:
        watching.stop()
        if prepared.job.heartbeat is None:
            ray.kill(pulse)
    best = checkpoint_store.best_checkpoint(checkpoint_store.list_checkpoints(prepared.folder))
    if best is None:
        raise TrainingError(f"run {prepared.name} ended before its first validation; its folder is {prepared.folder}.")
    return best.folder


def _stopped(prepared: PreparedRun) -> str:
    whole = checkpoint_store.list_checkpoints(prepared.folder)
    where = f"at step {whole[-1].step}" if whole else "before its first checkpoint"
    return f"run {prepared.name} was stopped {where}; it goes on with --resume {prepared.folder}."


def create_heartbeat_actor() -> ray.actor.ActorHandle:
    """Returns a pulse, on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(HeartbeatMonitor).remote()


def _is_elastic(config: Config) -> bool:
    return config.train.min_workers is not None and config.train.min_workers < config.train.workers


@contextmanager
def _waiting(elastic: bool) -> Iterator[None]:
    """Has Ray's trainer wait for workers as long as a run like this does, unless somebody said how long."""
    is_given = START_TIMEOUT_VARIABLE in os.environ
    os.environ.setdefault(START_TIMEOUT_VARIABLE, START_TIMEOUT_S[elastic])  # it is taken from here to the controller
    try:
        yield
    finally:
        if not is_given:
            del os.environ[START_TIMEOUT_VARIABLE]


def _trainer(prepared: PreparedRun, pulse: ray.actor.ActorHandle) -> SegrayTrainer:
    placement, train = prepared.job.placement, prepared.config.train
    resources = {"CPU": placement.cpus} | ({"GPU": placement.gpus} if placement.gpus else {})
    return SegrayTrainer(
        train_loop_per_worker,
        ours=[RegisterController(pulse)],
        train_loop_config={"job": ray.put(replace(prepared.job, heartbeat=pulse))},  # the controller need not open it
        scaling_config=ScalingConfig(
            num_workers=(train.min_workers, train.workers) if _is_elastic(prepared.config) else train.workers,
            use_gpu=placement.gpus > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=train.grow_s,
            placement_strategy="PACK" if placement.gpus else "SPREAD",
        ),
        run_config=RunConfig(
            name=_attempt(prepared.folder),
            storage_path=str(prepared.folder / RAY_FOLDER),
            callbacks=[JournalCallback(str(prepared.folder))],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=train.max_failures),
        ),
    )


def _attempt(folder: Path) -> str:
    """Returns a name that Ray Train has not met: it would take up what it knows under a known one."""
    return f"attempt-{1 + len(list((folder / RAY_FOLDER).glob('attempt-*')))}"


def _result(prepared: PreparedRun, best: Path, upload: RunUploader | None) -> TrainResult:
    meta = checkpoint.load_meta(best)
    return TrainResult(
        name=prepared.name,
        folder=str(prepared.folder),
        checkpoint=str(best),
        step=meta.step,
        scores=scores_from_confusion(np.asarray(meta.confusion), prepared.job.manifest.classes.names),
        tracking_uri=paths.redact(prepared.tracking_uri),
        run_id=upload.run_id if upload else None,
        model=prepared.config.tracking.model,
        version=upload.version if upload else None,
    )
