"""Tune actor that runs a trial: it calls `fit` in a thread and returns one validation per request."""

import json
import logging
import os
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import ray
from ray.exceptions import RayError
from ray.tune import Trainable

from segray.cluster.exceptions import one_line
from segray.config import Config, paths
from segray.core.errors import CheckpointError, OutOfMemoryError, RunStoppedError, SegrayError
from segray.core.logging import silence_libraries
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL, Journal, JournalReader, Record
from segray.training import checkpoint_store
from segray.training.fit import create_heartbeat_actor, fit
from segray.training.resume import is_finished, is_locked
from segray.training.shutdown import StopRequest
from segray.training.trial_context import TrialContext
from segray.tune.accumulation import with_doubled_accumulation

POLL_S = 0.05
PATIENCE_S = 60.0  # maximum wait for a checkpoint or the lock of a run
COPIES = 5

TASK, STEP, METRICS, ERROR, DONE = "task", "step", "found", "failed", "done"
SECONDS = "seconds"


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
        return json.dumps(
            [self.number, self.step, self.config.model_dump(mode="json"), self.changed_settings, self.source_run]
        )

    @classmethod
    def from_json(cls, text: str) -> "TrialTask":
        """Returns the task from its JSON text."""
        number, step, config, moved, donor = json.loads(text)
        return cls(number, step, Config.model_validate(config), tuple(moved), donor)


class TrialActor(Trainable):  # type: ignore[misc]
    """Tune actor that runs one trial after another."""

    def setup(self, config: dict[str, Any], part: TrialContext) -> None:
        silence_libraries()
        self._bell, self._part = part.pulse, replace(part, pulse=create_heartbeat_actor())
        self._run = TrialRun(TrialTask.from_json(config[TASK]), self._part, self._bell)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._run.close()
        self._run = TrialRun(TrialTask.from_json(new_config[TASK]), self._part, self._bell)
        return True

    def step(self) -> dict[str, Any]:
        return self._run.next_result()

    def stop_now(self) -> None:
        """Stops the run immediately, without a wait for its end."""
        self._run.stop.force()

    def cleanup(self) -> None:
        self._run.close()


class TrialRun:
    """Segment of a trial's run, in its own thread.

    Args:
        task: task of the segment.
        part: context of the sweep.
        bell: heartbeat actor of the sweep, which signals the end of the sweep to all trials. No other call reaches an
            actor that waits for a validation.

    Attributes:
        stop: stop request of the run.
    """

    def __init__(self, task: TrialTask, part: TrialContext, bell: ray.actor.ActorHandle | None) -> None:
        self._task, self._config, self._bell = task, task.config, bell
        self._part = replace(part, number=task.number)
        self._folder = Path(task.config.results) / str(task.config.name)
        self._began = monotonic()
        self.stop = StopRequest()
        self._failed: str | None = None
        self._tail = JournalReader(
            self._folder / JOURNAL, _offset(self._folder, None if task.source_run else task.step)
        )
        self._thread = threading.Thread(target=self._fit, daemon=True, name="segray-trial")
        self._thread.start()

    def next_result(self) -> dict[str, Any]:
        """Waits for the next validation and its checkpoint, or for the end of the run, and returns the result."""
        while True:
            is_over = not self._thread.is_alive()
            for record in self._tail.read():
                if is_validation(record):
                    self._await_checkpoint(record["step"])
                    return self._told() | {STEP: record["step"], METRICS: json.dumps(record["values"])}
            if is_over:
                return self._told() | {DONE: True, ERROR: self._failed or ""}
            self._listen()
            sleep(POLL_S)

    def _listen(self) -> None:
        """Requests a stop of the run if the sweep ends."""
        if self._bell is None or self.stop.requested:
            return
        with suppress(RayError):  # the sweep's driver is gone, and this process ends with it
            if ray.get(self._bell.ping.remote(self._task.number, os.getpid())):
                self.stop.request(ray.get(self._bell.stop_timeout_s.remote()))

    def close(self) -> None:
        """Requests a stop of the run after a checkpoint, and waits for its end."""
        self.stop.request()
        self._thread.join()

    def _told(self) -> dict[str, Any]:
        return {SECONDS: monotonic() - self._began}

    def _await_checkpoint(self, step: int) -> None:
        """Waits for the checkpoint of a step, because a pause stops the run immediately and resumes from it."""
        until = monotonic() + PATIENCE_S
        while monotonic() < until and self._thread.is_alive():
            whole = checkpoint_store.list_checkpoints(self._folder)
            if whole and whole[-1].step >= step:
                return
            sleep(POLL_S)

    def _fit(self) -> None:
        try:
            resume = resumable_run(self._folder)
            if self._task.source_run is not None:
                copy_checkpoint(Path(self._task.source_run), self._folder)
            if resume is None or not is_finished(self._folder):  # the run may have finished before the pause
                while not self._fits():
                    pass
        except RunStoppedError:  # expected: the run can resume from its complete checkpoint
            logging.getLogger(__name__).info("trial %d was stopped", self._task.number)
        except SegrayError as error:
            logging.getLogger(__name__).info("trial %d: %s", self._task.number, error)
            self._failed = one_line(error)
        except Exception as error:  # an unexpected error fails the trial, not the sweep
            logging.getLogger(__name__).exception("trial %d", self._task.number)
            self._failed = paths.redact(f"{type(error).__name__}: {error}")

    def _fits(self) -> bool:
        """Trains to the end and returns True.

        If memory is insufficient, doubles the gradient accumulation steps and returns False, for another attempt.
        """
        try:
            fit(
                self._config,
                resume=resumable_run(self._folder),
                allowed=[*self._task.changed_settings, "train.accumulate"],
                say=logging.getLogger(__name__).info,
                part=self._part,
                stop=self.stop,
            )
        except OutOfMemoryError:
            smaller = with_doubled_accumulation(self._config)
            if smaller is None:
                raise
            self._config = smaller
            return False
        return True


def is_validation(record: Record) -> bool:
    """Returns True if a run's record contains the metrics of a validation."""
    return record["kind"] == "metrics" and any(name.startswith("val/") for name in record["values"])


def resumable_run(folder: Path) -> str | None:
    """Returns the folder of a run to resume, or `None` for a new run.

    Waits until no other process holds the lock of the run. A folder without a record is left over from a process that
    was killed at its start, and is removed.
    """
    until = monotonic() + PATIENCE_S
    while folder.exists() and is_locked(folder) and monotonic() < until:
        sleep(POLL_S)
    if (folder / checkpoint.CONFIG).exists() and Journal(folder).records():
        return str(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _offset(folder: Path, step: int | None) -> int:
    """Returns the journal offset after the validation at a step, or the offset of its end if the step is `None`."""
    tail, found = JournalReader(folder / JOURNAL), 0
    for record in tail.read():
        if step is None or (is_validation(record) and record["step"] == step):
            found = tail.offset
    return found


def copy_checkpoint(donor: Path, run: Path) -> None:
    """Replaces the checkpoints of a run with the latest checkpoint of another run.

    Raises:
        CheckpointError: the donor has no checkpoint, or removes each one during the copy.
    """
    for attempt in range(COPIES):
        try:
            latest = checkpoint_store.list_checkpoints(donor)[-1]
            target = checkpoint_store.checkpoint_dir(run, latest.step)
            partial = target.with_name(f"{target.name}{checkpoint_store.TEMP_SUFFIX}")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(latest.folder, partial)
            break
        except (OSError, IndexError) as error:  # the donor's run removes older checkpoints
            if attempt == COPIES - 1:
                raise CheckpointError(f"{donor} has no checkpoint that could be copied.") from error
            sleep(POLL_S)
    for own in checkpoint_store.list_checkpoints(run):
        shutil.rmtree(own.folder)
    partial.rename(target)
    Journal(run).write("rewound", step=latest.step, donor=donor.name)
