"""From the ranks' reports to one line of the run's journal, in the controller."""

from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from segray.tracking.journal import Journal


class JournalReports(UserCallback):  # type: ignore[misc]
    """Appends what the ranks reported to the run's journal; it waits for nothing and nobody."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def after_report(
        self,
        run_context: Any,
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Writes one record."""
        Journal(Path(self._folder)).write("metrics", step=metrics[0]["step"], values=joined(metrics))


def joined(reports: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the metrics of one report, by name, from those of all ranks.

    A rank's loss is its sum over the global batch's mean pixels, so the mean over the ranks is the global loss;
    images add up; the slowest rank sets the time. Rows left out are told of once there are any.
    """
    meters = [report["meter"] for report in reports]
    elapsed = max(meter["elapsed_s"] for meter in meters)
    values = {
        **{
            f"train/{name}": sum(meter[name] for meter in meters) / len(meters)
            for name in meters[0]
            if name.startswith("loss")
        },
        "train/lr": reports[0]["lr"],
        "train/images_per_s": sum(meter["images"] for meter in meters) / max(elapsed, 1e-9),
        "train/data_wait": max(meter["wait_s"] for meter in meters) / max(elapsed, 1e-9),
    }
    for name in reports[0]["bad_rows"]:
        if bad := sum(report["bad_rows"][name] for report in reports):
            values[f"{name}/bad_rows"] = bad
    return values | {name: value for name, value in reports[0].items() if name.startswith("val/")}
