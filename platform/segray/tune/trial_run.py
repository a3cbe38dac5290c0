"""Segment of a trial's run: it calls `fit` in a thread and returns one validation per request."""

import errno
import json
import logging
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, sleep

import ray
from ray.exceptions import RayError

from segray.config import Config, paths
from segray.core.errors import CheckpointError, RunStoppedError, SegrayError, StepOutOfMemoryError, cause_summary
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL, Journal, JournalReader, Record
from segray.training import checkpoint_store
from segray.training.fit import fit
from segray.training.runs import is_finished, is_locked
from segray.training.shutdown import StopRequest
from segray.training.trial_context import TrialContext
from segray.tune.accumulation import with_doubled_accumulation

POLL_S = 0.05
WAIT_TIMEOUT_S = 60.0  # maximum wait for a checkpoint or the lock of a run
MAX_COPY_ATTEMPTS = 5


@dataclass(frozen=True)
class TrialTask:
    """Task of an actor.

    Attributes:
        number: number of the trial.
        step: step of the last validation that the scheduler evaluated.
        config: settings of the run; `name` and `results` determine its folder.
        changed_settings: settings that may have changed since the last segment.
        source_run: folder of the run whose checkpoint the segment starts from; defaults to the trial's own run.
    """

    number: int
    step: int
    config: Config
    changed_settings: tuple[str, ...] = ()
    source_run: str | None = None

    def to_json(self) -> str:
        """Returns the task as JSON text. Tune would derive names from a structure and search it for grids."""
        return json.dumps(vars(self) | {"config": self.config.model_dump(mode="json")})

    @classmethod
    def from_json(cls, text: str) -> "TrialTask":
        """Returns the task from its JSON text."""
        fields = json.loads(text)
        fields["config"] = Config.model_validate(fields["config"])
        fields["changed_settings"] = tuple(fields["changed_settings"])
        return cls(**fields)


@dataclass(frozen=True)
class TrialReport:
    """Report of an actor: a validation, or the end of the segment.

    Attributes:
        seconds: run time of the segment so far.
        step: step of the validation; `None` at the end of the segment.
        metrics: metrics of the validation by name.
        error: reason for the failure of the trial; empty if it did not fail.
    """

    seconds: float
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def is_final(self) -> bool:
        """True at the end of the segment."""
        return self.step is None


class TrialRun:
    """Segment of a trial's run, in its own thread.

    Args:
        task: task of the segment.
        context: context of the sweep.
        stop_signal: `StopSignal` actor of the sweep, polled during the wait for a validation: the trial's own actor
            receives no other call then.

    Attributes:
        stop: stop request of the run.
    """

    def __init__(self, task: TrialTask, context: TrialContext, stop_signal: ray.actor.ActorHandle | None) -> None:
        self._task, self._config, self._stop_signal = task, task.config, stop_signal
        self._context = replace(context, number=task.number)
        self._folder = Path(task.config.results) / str(task.config.name)
        self._started = monotonic()
        self.stop = StopRequest()
        self._error = ""
        offset = _journal_offset(self._folder, None if task.source_run else task.step)
        self._reader = JournalReader(self._folder / JOURNAL, offset)
        self._thread = threading.Thread(target=self._run, daemon=True, name="segray-trial")
        self._thread.start()

    def next_report(self) -> TrialReport:
        """Waits for the next validation and its checkpoint, or for the end of the run, and returns a report."""
        while True:
            is_over = not self._thread.is_alive()
            for record in self._reader.read():
                if is_validation(record):
                    self._await_checkpoint(record["step"])
                    return TrialReport(self._elapsed_s(), record["step"], record["values"])
            if is_over:
                return TrialReport(self._elapsed_s(), error=self._error)
            self._check_sweep_stop()
            sleep(POLL_S)

    def close(self) -> None:
        """Requests a stop of the run after a checkpoint, and waits for its end."""
        self.stop.request()
        self._thread.join()

    def _check_sweep_stop(self) -> None:
        """Requests a stop of the run if the sweep ends."""
        if self._stop_signal is None or self.stop.requested:
            return
        with suppress(RayError):  # the sweep's driver is gone, and this process ends with it
            if ray.get(self._stop_signal.is_stop_requested.remote()):
                self.stop.request(ray.get(self._stop_signal.stop_timeout_s.remote()))

    def _elapsed_s(self) -> float:
        return monotonic() - self._started

    def _await_checkpoint(self, step: int) -> None:
        """Waits for the checkpoint of a step, because a pause stops the run immediately and resumes from it."""
        deadline = monotonic() + WAIT_TIMEOUT_S
        while monotonic() < deadline and self._thread.is_alive():
            checkpoints = checkpoint_store.list_checkpoints(self._folder)
            if checkpoints and checkpoints[-1].step >= step:
                return
            sleep(POLL_S)

    def _run(self) -> None:
        try:
            resume = resumable_run(self._folder)
            if self._task.source_run is not None:
                copy_checkpoint(Path(self._task.source_run), self._folder)
            if resume is None or not is_finished(self._folder):  # the run may have finished before the pause
                self._fit_in_memory()
        except RunStoppedError:  # expected: the run can resume from its complete checkpoint
            logging.getLogger(__name__).info("trial %d was stopped", self._task.number)
        except SegrayError as error:
            logging.getLogger(__name__).info("trial %d: %s", self._task.number, error)
            self._error = cause_summary(error)
        except Exception as error:  # an unexpected error fails the trial, not the sweep
            logging.getLogger(__name__).exception("trial %d", self._task.number)
            self._error = paths.redact(f"{type(error).__name__}: {error}")

    def _fit_in_memory(self) -> None:
        """Trains to the end, with twice the accumulation steps after each training step that runs out of memory."""
        while True:
            try:
                fit(
                    self._config,
                    resume=resumable_run(self._folder),
                    allowed=[*self._task.changed_settings, "train.accumulation_steps"],
                    say=logging.getLogger(__name__).info,
                    trial=self._context,
                    stop=self.stop,
                )
                return
            except StepOutOfMemoryError:
                config = with_doubled_accumulation(self._config)
                if config is None:
                    raise
                self._config = config


def is_validation(record: Record) -> bool:
    """Returns True if a run's record contains the metrics of a validation."""
    return record["kind"] == "metrics" and any(name.startswith("val/") for name in record["values"])


def resumable_run(folder: Path) -> str | None:
    """Returns the folder of a run to resume, or `None` for a new run.

    Waits until no other process holds the lock of the run. Removes a folder without journal records: the process that
    created it was killed at its start.
    """
    deadline = monotonic() + WAIT_TIMEOUT_S
    while folder.exists() and is_locked(folder) and monotonic() < deadline:
        sleep(POLL_S)
    if (folder / checkpoint.CONFIG).exists() and Journal(folder).records():
        return str(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _journal_offset(folder: Path, step: int | None) -> int:
    """Returns the journal offset after the validation at a step, or the offset of its end if the step is `None`."""
    reader, offset = JournalReader(folder / JOURNAL), 0
    for record in reader.read():
        if step is None or (is_validation(record) and record["step"] == step):
            offset = reader.offset
    return offset


def _latest_checkpoint(run: Path) -> checkpoint_store.CheckpointInfo:
    latest = checkpoint_store.latest_checkpoint(run)
    if latest is None:
        raise FileNotFoundError(errno.ENOENT, "no checkpoint", str(run))
    return latest


def copy_checkpoint(donor: Path, run: Path) -> None:
    """Replaces the checkpoints of a run with the latest checkpoint of another run.

    The copy has no metrics: those of the donor are not a result of this run.

    Raises:
        CheckpointError: the donor has no checkpoint, or removes each one during the copy.
    """
    for attempt in range(MAX_COPY_ATTEMPTS):
        try:
            latest = _latest_checkpoint(donor)
            target = checkpoint_store.checkpoint_dir(run, latest.step)
            partial = target.with_name(f"{target.name}{checkpoint_store.TEMP_SUFFIX}")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(latest.folder, partial)
            meta = checkpoint.load_meta(partial).model_copy(update={"metrics": {}, "confusion": []})
            (partial / checkpoint.META).write_text(meta.model_dump_json())
            break
        except (OSError, CheckpointError) as error:  # the donor's run removes older checkpoints
            if attempt == MAX_COPY_ATTEMPTS - 1:
                raise CheckpointError(f"{donor} has no checkpoint that can be copied.") from error
            sleep(POLL_S)
    for replaced in checkpoint_store.checkpoint_folders(run):
        checkpoint_store.remove_checkpoint(replaced)
    partial.rename(target)
    Journal(run).write("rewound", step=latest.step, donor=donor.name)
