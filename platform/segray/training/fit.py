"""Run driver: checks the settings, runs the trainer, writes the journal and registers the best checkpoint."""

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

from segray.config import Config, paths
from segray.core.errors import RunStoppedError, SegrayError, TrainingError, UserError, root_cause
from segray.core.signals import handle_signals
from segray.evaluation.metrics.scores import Scores, scores_from_confusion
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.tracking.tags import CHALLENGER
from segray.tracking.uploader import RunUploader, UploadThread
from segray.training import checkpoint_store
from segray.training.attempts import FailureBudget, run_attempts
from segray.training.heartbeat import HangWatchdog, HeartbeatMonitor, create_local_actor, kill_ranks
from segray.training.ray_trainer import SegrayTrainer
from segray.training.reporting import JournalCallback
from segray.training.setup import PreparedRun, prepare_run
from segray.training.shutdown import RegisterController, StopRequest, stop_on_request
from segray.training.trial_context import TrialContext
from segray.training.worker import train_loop_per_worker

RAY_FOLDER = "ray"
START_TIMEOUT_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_TIMEOUT_S = {False: "1800", True: "20"}
"""Worker start timeout in seconds, by whether the run is elastic. Cloud nodes take minutes to start. An elastic run
counts the available workers again after each timeout."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a finished run.

    Attributes:
        name: name of the run.
        folder: absolute path of the run folder.
        checkpoint: folder of the best checkpoint.
        step: step of the best checkpoint.
        scores: validation scores of the best checkpoint.
        tracking_uri: MLflow store of the run and the model.
        run_id: MLflow run id; `None` if MLflow was unavailable.
        model: name under which the checkpoint is registered.
        version: registered model version; `None` if MLflow was unavailable.
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
    trial: TrialContext | None = None,
    stop: StopRequest | None = None,
) -> TrainResult:
    """Trains, validates, tracks and registers the model described by a Config.

    Args:
        config: settings of the run.
        resume: run to resume: "auto", a run folder or its latest checkpoint; `None` starts a new run.
        allowed: settings (or "dataset", "classes") that may differ from those of the resumed run, even though they
            affect the training result.
        say: callback that receives the few lines meant for the user.
        watch: callback that receives the run folder before training starts, for example to follow the journal.
        trial: sweep context, if the run is a trial; the sweep then uploads the journal and registers the models.
        stop: stop request of the caller; it has the same effect as Ctrl-C and SIGTERM.

    Raises:
        UserError: the run cannot work; no folder is left.
        RunStoppedError: the run was stopped on request; `resume` continues it.
        TrainingError: the run started and failed; its folder keeps everything saved so far.
    """
    prepared = prepare_run(config, resume, allowed, say, trial)
    say(f"run {prepared.name}: {prepared.job.placement}")
    if not prepared.is_new:
        say(_describe_start(prepared, say))
    if watch is not None:
        watch(prepared.folder)
    uploader = None if trial else RunUploader(prepared.folder, prepared.tracking_uri, say)
    with prepared.lock, _journal_of_run(prepared, uploader, say) as journal:
        best = _train(prepared, journal, stop or StopRequest(), say)
        if trial is None:
            queue_registration(journal, best, config.tracking.model)
    return _result(prepared, best, uploader)


def queue_registration(journal: Journal, checkpoint_folder: Path, model: str) -> None:
    """Requests registration of a checkpoint as the challenger; the uploader of the run performs it.

    Args:
        journal: journal of the run.
        checkpoint_folder: checkpoint in the run folder.
        model: name under which the checkpoint is registered.
    """
    journal.write("model", folder=checkpoint_folder.name, name=model, aliases=[CHALLENGER])


def _describe_start(prepared: PreparedRun, say: Callable[[str], None]) -> str:
    latest = checkpoint_store.latest_checkpoint(prepared.folder, warn=say)
    return "no checkpoint yet; starting at step 0." if latest is None else f"resuming from step {latest.step}."


@contextmanager
def _journal_of_run(
    prepared: PreparedRun, uploader: RunUploader | None, say: Callable[[str], None]
) -> Iterator[Journal]:
    """Uploads the journal during training, if this process is responsible for it, and writes the final status."""
    journal = Journal(prepared.folder)
    upload_thread = None if uploader is None else UploadThread(uploader, say)
    if upload_thread is not None:
        upload_thread.start()
    status, keep = "FAILED", True
    try:
        yield journal
        status = "FINISHED"
    except (KeyboardInterrupt, RunStoppedError):
        status = "KILLED"
        raise
    except UserError:
        keep = uploader is None or not _is_empty(prepared)  # the uploader of a sweep may already read the folder
        raise
    finally:
        _write_end(journal, status, say)
        if upload_thread is not None and not upload_thread.close() and keep:
            uri = paths.redact(prepared.tracking_uri)
            say(f"the upload to {uri} is incomplete; complete it with `segray tracking sync {prepared.folder}`.")
        if not keep:
            shutil.rmtree(prepared.folder)


def _write_end(journal: Journal, status: str, say: Callable[[str], None]) -> None:
    """Writes the final status of the run.

    A write error is only printed, so that it does not hide the error of the run.
    """
    try:
        journal.write("end", status=status)
    except OSError as error:
        say(f"the final status {status} cannot be written to {journal.path} ({error.strerror}).")


def _train(prepared: PreparedRun, journal: Journal, stop: StopRequest, say: Callable[[str], None]) -> Path:
    """Runs the training and returns the folder of the best checkpoint.

    Raises:
        SegrayError: a worker failed with this error.
        TrainingError: the run failed for another reason; the message names the command that resumes it.
        RunStoppedError: the run was stopped on request.
    """
    monitor = prepared.job.heartbeat_monitor or create_local_actor(HeartbeatMonitor)
    watchdog = HangWatchdog(
        monitor, prepared.config.train.hang_timeout_s, lambda line: journal.write("event", text=line)
    )
    watchdog.start()
    budget = FailureBudget(journal, prepared.config.train.max_failures)

    def attempt(max_failures: int) -> None:
        monitor.reset.remote()
        with stop_on_request(stop, monitor, say):
            _trainer(prepared, monitor, max_failures).fit()

    def on_loss(remaining: int) -> None:
        say(f"the controller of the run died; continuing from the last checkpoint ({remaining} failures remain).")
        kill_ranks(monitor)

    try:
        with (
            handle_signals(lambda: stop.request(paths.job_stop_timeout_s()), stop.force),
            _worker_start_timeout(_is_elastic(prepared.config)),
        ):
            run_attempts(attempt, budget, lambda: stop.requested, on_loss, _resume_hint(prepared))
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        cause = root_cause(error)
        if stop.requested and (cause is None or isinstance(cause, RunStoppedError)):
            raise RunStoppedError(_stop_message(prepared)) from error
        raise _with_resume_hint(cause or TrainingError(f"run {prepared.name} failed: {error}."), prepared) from error
    finally:
        watchdog.stop()
        if prepared.job.heartbeat_monitor is None:
            ray.kill(monitor)
    score = prepared.config.train.score
    best = checkpoint_store.best_checkpoint(checkpoint_store.list_checkpoints(prepared.folder, score=score))
    if best is None:
        raise TrainingError(
            f"no checkpoint of run {prepared.name} has a value of train.score, {score}; its folder is "
            f"{prepared.folder}."
        )
    return best.folder


def _resume_hint(prepared: PreparedRun) -> str:
    if prepared.config.tune.space:  # only the sweep can resume a trial
        return f"resume the sweep with --resume {prepared.folder.parent}"
    return f"resume it with --resume {prepared.folder}"


def _with_resume_hint(error: SegrayError, prepared: PreparedRun) -> SegrayError:
    """Returns an error of the same class whose message names the option that resumes the run, if its folder is kept."""
    text = str(error)
    if "--resume" in text or (isinstance(error, UserError) and _is_empty(prepared)):
        return error
    return type(error)(f"{text.removesuffix('.')}; {_resume_hint(prepared)}.")


def _is_empty(prepared: PreparedRun) -> bool:
    """Returns `True` if the run is new and has no checkpoint. Its folder is removed after a user error."""
    return prepared.is_new and not any(prepared.folder.glob(f"*/{checkpoint.META}"))


def _stop_message(prepared: PreparedRun) -> str:
    checkpoints = checkpoint_store.list_checkpoints(prepared.folder)
    position = f"at step {checkpoints[-1].step}" if checkpoints else "before its first checkpoint"
    return f"run {prepared.name} was stopped {position}; {_resume_hint(prepared)}."


def _is_elastic(config: Config) -> bool:
    return config.train.min_workers is not None and config.train.min_workers < config.train.workers


@contextmanager
def _worker_start_timeout(is_elastic: bool) -> Iterator[None]:
    """Sets the worker start timeout of Ray Train for this run, unless the environment already sets it."""
    is_set = START_TIMEOUT_VARIABLE in os.environ
    os.environ.setdefault(START_TIMEOUT_VARIABLE, START_TIMEOUT_S[is_elastic])  # Ray Train passes it to the controller
    try:
        yield
    finally:
        if not is_set:
            del os.environ[START_TIMEOUT_VARIABLE]


def _trainer(prepared: PreparedRun, monitor: ray.actor.ActorHandle, max_failures: int) -> SegrayTrainer:
    placement, train = prepared.job.placement, prepared.config.train
    resources = {"CPU": placement.cpus} | ({"GPU": placement.gpus} if placement.gpus else {})
    return SegrayTrainer(
        train_loop_per_worker,
        extra_callbacks=[RegisterController(monitor)],
        # A reference, so that the controller does not deserialise the specification.
        train_loop_config={"job": ray.put(replace(prepared.job, heartbeat_monitor=monitor))},
        scaling_config=ScalingConfig(
            num_workers=(train.min_workers, train.workers) if _is_elastic(prepared.config) else train.workers,
            use_gpu=placement.gpus > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=train.resize_interval_s,
            placement_strategy="PACK" if placement.gpus else "SPREAD",
        ),
        run_config=RunConfig(
            name=_attempt(prepared.folder),
            storage_path=str(prepared.folder / RAY_FOLDER),
            callbacks=[JournalCallback(str(prepared.folder))],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )


def _attempt(folder: Path) -> str:
    """Returns an unused Ray Train run name. Ray Train restores its stored state if a name is reused."""
    return f"attempt-{1 + len(list((folder / RAY_FOLDER).glob('attempt-*')))}"


def _result(prepared: PreparedRun, best: Path, uploader: RunUploader | None) -> TrainResult:
    meta = checkpoint.load_meta(best)
    return TrainResult(
        name=prepared.name,
        folder=str(prepared.folder),
        checkpoint=str(best),
        step=meta.step,
        scores=scores_from_confusion(np.asarray(meta.confusion), prepared.job.manifest.classes.names),
        tracking_uri=paths.redact(prepared.tracking_uri),
        run_id=uploader.run_id if uploader else None,
        model=prepared.config.tracking.model,
        version=uploader.version if uploader else None,
    )
