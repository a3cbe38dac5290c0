"""Metrics of a training step (`train/*`, `system/*`): aggregation of rank reports into records of the run journal."""

import logging
import math
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from segray.config.paths import preview_path
from segray.core.errors import RunStoppedError, first_line
from segray.core.logging import warn_on_error
from segray.tracking.journal import Journal, Kind
from segray.training.attempts import FAILURE_FIELD
from segray.training.failure_policy import PreemptedError

RECENT_REPORTS = "recent"
LATEST_CHECKPOINT = "newest"
CHECKPOINT_TAG = "segray.checkpoint"


class JournalCallback(UserCallback):  # type: ignore[misc]
    """Appends the reports of the ranks to the run journal without blocking.

    Each report also contains the previous report, and a resumed run first sends the reports stored in its checkpoint.
    Each step is therefore recorded exactly once, even if a process dies in between. Repeated steps are recognised by
    number, and their existing records are kept.
    """

    def __init__(self, folder: str) -> None:
        self._journal = Journal(Path(folder))
        self._last_step: int | None = None
        self._latest_checkpoint: str | None = None
        self._unwritten: list[tuple[int, dict[str, float]]] = []
        self._pending: list[tuple[Kind, dict[str, Any]]] = []

    def after_report(
        self,
        run_context: Any,
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Writes the new records."""
        self._unwritten += metrics[0][RECENT_REPORTS]
        with warn_on_error(f"the metrics cannot be written to {self._journal.path}"):
            self._write_reports()
        latest = metrics[0].get(LATEST_CHECKPOINT)
        if latest is not None and latest != self._latest_checkpoint:
            self._latest_checkpoint = latest
            self._write("tag", name=CHECKPOINT_TAG, value=latest)

    def _write_reports(self) -> None:
        """Writes the reports received so far, or leaves them for the next call if the journal cannot be read."""
        if self._last_step is None:
            self._last_step = self._journal.last_step()
        while self._unwritten:
            step, values = self._unwritten.pop(0)
            if step > self._last_step:
                self._last_step = step
                self._write("metrics", step=step, values=values)
                preview = preview_path(self._journal.path.parent, step)
                if preview.exists():
                    folder = preview.parent.name
                    self._write("image", file=f"{folder}/{preview.name}", place=folder)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Writes the errors of the workers. The first one counts as a failure of the run, unless it is a preemption."""
        failure = {FAILURE_FIELD: True} if all(map(_counts_as_failure, worker_exceptions.values())) else {}
        for rank, error in sorted(worker_exceptions.items()):
            self._write("event", text=_error_line(rank, error), **failure)
            failure = {}
            if isinstance(error, PreemptedError | RunStoppedError):  # all ranks report the same error
                return

    def _write(self, kind: Kind, **fields: Any) -> None:
        """Appends a record. Records that cannot be written are kept for the next call."""
        self._pending.append((kind, fields))
        while self._pending:
            try:
                self._journal.write(self._pending[0][0], **self._pending[0][1])
            except OSError as error:
                logging.getLogger(__name__).warning("the journal cannot be written: %s", error)
                return
            self._pending.pop(0)


def _counts_as_failure(error: Exception) -> bool:
    """Returns `True` if an error counts against `train.max_failures`: it is neither a preemption nor a stop."""
    is_preempted = getattr(getattr(error, "failure", None), "preempted", False)  # Ray keeps the death of an actor here
    return not (is_preempted or isinstance(error, PreemptedError | RunStoppedError))


def _error_line(rank: int, error: Exception) -> str:
    if isinstance(error, PreemptedError | RunStoppedError):
        return str(error)
    return f"rank {rank} ended: {first_line(error)}"


def aggregate_reports(reports: list[dict[str, Any]]) -> dict[str, float]:
    """Combines the reports of all ranks into metrics by name.

    The loss of a rank is its sum divided by the mean number of pixels per rank in the global batch, so the mean over
    ranks is the global loss. Image counts are summed. Times are those of the slowest rank. Counts of skipped rows and
    skipped steps appear only if they are not zero. Metrics that are not finite (means over no steps) are omitted.
    """
    meters = [report["meter"] for report in reports]
    elapsed = max(meter["elapsed_s"] for meter in meters)
    values = {
        **{
            f"train/{name}": sum(meter[name] for meter in meters) / len(meters)
            for name in meters[0]
            if name.startswith("loss")
        },
        "train/grad_norm": meters[0]["grad_norm"],
        "train/lr": reports[0]["lr"],
        "train/images_per_s": sum(meter["images"] for meter in meters) / max(elapsed, 1e-9),
        "train/data_wait": max(meter["wait_s"] for meter in meters) / max(elapsed, 1e-9),
        "system/workers": float(len(reports)),  # varies in an elastic run
        **_aggregate_usage([report["system"] for report in reports]),
    }
    for name, count in _counts(reports).items():
        if count:
            values[name] = count
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _counts(reports: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "train/skipped": reports[0]["meter"]["skipped"],
        "train/bad_rows": sum(report["bad_rows"] for report in reports),
    }


def _aggregate_usage(usages: list[dict[str, float]]) -> dict[str, float]:
    """Returns the mean percentages and the maximum memory sizes over all ranks."""
    totals = {}
    for name in {name: None for usage in usages for name in usage}:
        values = [usage[name] for usage in usages if name in usage]  # a rank omits what it cannot measure
        totals[f"system/{name}"] = max(values) if name.endswith("gib") else sum(values) / len(values)
    return totals
