"""What a sweep knows, on disk: its own journal, and the journals of its trials' runs.

`sweep/journal.jsonl` holds each suggestion before it is tried, and what became of each trial; a trial's folder holds
its run. Both together are all there is: a sweep that goes on is made of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segray.tracking.journal import Journal
from segray.tune.controller import WORST
from segray.tune.trial import COST, State, Trial, objective_sign

KIND_TAG, SWEEP = "segray.kind", "sweep"

RUN_NAME = "trial-{:03d}"

AT_WORK = ("metrics", "event")
"""Records that a run writes itself, while it is at work."""


def trial_dir(sweep: Path, number: int) -> Path:
    """Returns the folder of a trial's run."""
    return sweep / RUN_NAME.format(number)


class SweepJournal:
    """The journal of a sweep.

    Args:
        folder: of the sweep.
        metrics: what is looked for.
    """

    def __init__(self, folder: Path, metrics: tuple[str, ...]) -> None:
        self.folder, self._metrics = folder, metrics
        self.journal = Journal(folder)
        self._paused: dict[int, int | None] = {}
        self._heard: dict[int, int] = {}

    def log_suggestion(self, trial: Trial) -> None:
        """Notes a trial before it is tried."""
        self.journal.write("trial", number=trial.number, values=trial.values)

    def log_state(self, trial: Trial) -> None:
        """Notes what became of a trial, and for how long it has run."""
        self.journal.write(
            "became",
            number=trial.number,
            state=trial.state,
            why=trial.reason,
            values=trial.values,
            copies=trial.copy_from,
            step=trial.step,
            costs={name: value for name, value in trial.others.items() if name.startswith(COST)},
            seconds=trial.seconds,
        )

    def load_trials(self) -> list[Trial]:
        """Returns all trials as they were left; those that ran then wait to go on."""
        found: list[Trial] = []
        self._paused, self._heard = {}, {}
        for record in self.journal.records():
            if record["kind"] == "trial":
                found.append(Trial(record["number"], record["values"]))
            elif record["kind"] == "became":
                _became(found[record["number"]], record)
                self._heard[record["number"]] = record["time_ms"]
                self._paused[record["number"]] = record["step"] if record["state"] == State.PAUSED else None
        for trial in found:
            self._read_run(trial)
        return found

    def _read_run(self, trial: Trial) -> None:
        """Fills in what a trial's run has come to."""
        records = Journal(trial_dir(self.folder, trial.number)).records()
        if trial.state is State.RUNNING:
            trial.state = State.PENDING
        for record in records:
            if record["kind"] == "rewound":
                trial.roll_back(record["step"])
                if record["time_ms"] >= self._heard.get(trial.number, 0):  # the copy that it was to make
                    trial.copy_from = None
            elif record["kind"] == "metrics":
                self._read_metrics(trial, record["step"], record["values"])
        ended = [record["status"] for record in records if record["kind"] == "end"]
        if ended and ended[-1] == "FINISHED" and trial.state is State.PENDING:
            trial.state = State.FINISHED
        trial.seconds = max(trial.seconds, active_seconds(records))

    def _read_metrics(self, trial: Trial, step: int, values: dict[str, float]) -> None:
        if not any(name.startswith("val/") for name in values):
            return
        paused = self._paused.get(trial.number)
        if paused is not None and step > paused:  # made before the run heard that it was to pause: not judged yet
            return
        first, *others = self._metrics
        trial.add_result(step, objective_sign(first) * values[first] if first in values else WORST)
        trial.others |= {name: values[name] for name in others if name in values}


def _became(trial: Trial, record: dict[str, Any]) -> None:
    trial.state, trial.reason, trial.values = State(record["state"]), record["why"], record["values"]
    trial.copy_from, trial.seconds = record["copies"], record["seconds"]
    trial.others |= record["costs"]


def active_seconds(records: Sequence[dict[str, Any]]) -> float:
    """Returns the seconds that a run was at work, from its journal: whoever was killed could not tell them."""
    began: int | None = None
    spent = last = 0
    for record in records:
        if record["kind"] in ("run", "resumed"):
            spent += last - began if began is not None else 0
            began = last = record["time_ms"]
        elif record["kind"] in AT_WORK:
            last = record["time_ms"]
    return (spent + last - began) / 1000 if began is not None else 0.0
