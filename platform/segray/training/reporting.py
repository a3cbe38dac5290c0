"""From the ranks' reports to one line of the run's journal, in the controller."""

import logging
import math
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from segray.config.paths import preview_path
from segray.core.errors import RunStoppedError
from segray.tracking.journal import Journal, Kind
from segray.training.failure_policy import PreemptedError

RECENT_REPORTS = "recent"
LATEST_CHECKPOINT = "newest"
CHECKPOINT_TAG = "segray.checkpoint"


class JournalCallback(UserCallback):  # type: ignore[misc]
    """Appends what the ranks reported to the run's journal; it waits for nothing and nobody.

    Every report bears the one before it too, and a run that goes on from a checkpoint begins with those it had made
    by then: whoever died in between, each step's report is written, once. Steps that are made again are known by
    their number, and what the journal has of them stays as it is.
    """

    def __init__(self, folder: str) -> None:
        self._journal = Journal(Path(folder))
        self._last: int | None = None
        self._newest: str | None = None
        self._waiting: list[tuple[Kind, dict[str, Any]]] = []

    def after_report(
        self,
        run_context: Any,
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Writes the records that are new."""
        if self._last is None:
            self._last = self._journal.last_step()
        for step, values in metrics[0][RECENT_REPORTS]:
            if step > self._last:
                self._last = step
                self._write("metrics", step=step, values=values)
                picture = preview_path(self._journal.path.parent, step)
                if picture.exists():
                    place = picture.parent.name
                    self._write("image", file=f"{place}/{picture.name}", place=place)
        newest = metrics[0].get(LATEST_CHECKPOINT)
        if newest is not None and newest != self._newest:
            self._newest = newest
            self._write("tag", name=CHECKPOINT_TAG, value=newest)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Notes why workers ended."""
        for rank, error in sorted(worker_exceptions.items()):
            self._write("event", text=_told(rank, error))
            if isinstance(error, PreemptedError | RunStoppedError):  # all ranks say the same
                return

    def _write(self, kind: Kind, **fields: Any) -> None:
        """Appends a record; what a full disk does not take is kept for the next time."""
        self._waiting.append((kind, fields))
        while self._waiting:
            try:
                self._journal.write(self._waiting[0][0], **self._waiting[0][1])
            except OSError as error:
                logging.getLogger(__name__).warning("the journal cannot be written: %s", error)
                return
            self._waiting.pop(0)


def _told(rank: int, error: Exception) -> str:
    if isinstance(error, PreemptedError | RunStoppedError):
        return str(error)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"rank {rank} ended: {lines[0][:300]}"


def aggregate_reports(reports: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the metrics of one report, by name, from what all ranks found.

    A rank's loss is its sum over the global batch's mean pixels, so the mean over the ranks is the global loss;
    images add up; the slowest rank sets the time. Rows left out and steps skipped are told of once there are any; a
    mean over no step is left out.
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
        "system/workers": float(len(reports)),  # an elastic run has more and less of them
        **_of_machines([report["system"] for report in reports]),
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


def _of_machines(usages: list[dict[str, float]]) -> dict[str, float]:
    """Returns the means of the ranks' percentages and the largest of their memories."""
    found = {}
    for name in usages[0]:
        values = [usage[name] for usage in usages]
        found[f"system/{name}"] = max(values) if name.endswith("gib") else sum(values) / len(values)
    return found
