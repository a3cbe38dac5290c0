"""State of a sweep on disk: its own journal and the journals of its trials' runs.

`sweep/journal.jsonl` holds each suggestion before its trial starts, and each change of a trial's state. A trial's
folder holds its run. A resumed sweep is restored from these files only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segray.config.renamed import current_key
from segray.core.errors import DataError
from segray.core.parsing import summarize_error
from segray.tracking.journal import Journal
from segray.tune.controller import WORST
from segray.tune.trial import COST, State, Trial, objective_sign

RUN_NAME = "trial-{:03d}"
ACTIVE_KINDS = ("metrics", "event")
"""Kinds of records that a run writes during training."""


def trial_dir(sweep: Path, number: int) -> Path:
    """Returns the folder of a trial's run."""
    return sweep / RUN_NAME.format(number)


class SweepJournal:
    """Journal of a sweep.

    Args:
        folder: sweep folder.
        metrics: objectives of the sweep.
    """

    def __init__(self, folder: Path, metrics: tuple[str, ...]) -> None:
        self.folder, self._metrics = folder, metrics
        self.journal = Journal(folder)
        self._pause_steps: dict[int, int | None] = {}
        self._change_times: dict[int, int] = {}

    def log_suggestion(self, trial: Trial) -> None:
        """Records a trial before it starts."""
        self.journal.write("trial", number=trial.number, values=trial.values)

    def log_state(self, trial: Trial) -> None:
        """Records the state of a trial and its run time."""
        self.journal.write(
            "became",
            number=trial.number,
            state=trial.state,
            why=trial.reason,
            values=trial.values,
            copies=trial.copy_from,
            step=trial.step,
            costs={name: value for name, value in trial.other_metrics.items() if name.startswith(COST)},
            seconds=trial.seconds,
        )

    def load_trials(self) -> list[Trial]:
        """Returns all trials in their last recorded state. Trials that were running become pending.

        Raises:
            DataError: a record is invalid, or names a trial that was not suggested before.
        """
        try:
            return self._load_trials()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {summarize_error(error)}"
            raise DataError(f"{self.journal.path} has an invalid record of a trial ({reason}).") from error

    def _load_trials(self) -> list[Trial]:
        trials: list[Trial] = []
        self._pause_steps, self._change_times = {}, {}
        for record in self.journal.records():
            if record["kind"] == "trial":
                trials.append(Trial(record["number"], current_values(record["values"])))
            elif record["kind"] == "became":
                number = record["number"]
                _restore_state(trials[number], record)
                self._change_times[number] = record["time_ms"]
                self._pause_steps[number] = record["step"] if record["state"] == State.PAUSED else None
        for trial in trials:
            self._read_run(trial)
        return trials

    def _read_run(self, trial: Trial) -> None:
        """Adds the results from the journal of a trial's run."""
        records = Journal(trial_dir(self.folder, trial.number)).records()
        is_running = trial.state is State.RUNNING
        if is_running:
            trial.state = State.PENDING
        for record in records:
            if record["kind"] == "rewound":
                trial.continue_from_copy(record["step"])
                if record["time_ms"] >= self._change_times.get(trial.number, 0):  # the run has made the copy
                    trial.copy_from = None
            elif record["kind"] == "metrics":
                self._read_metrics(trial, record["step"], record["values"])
        if is_running and trial.copy_from is not None:  # the run may have removed its checkpoints for the copy
            trial.continue_from_copy(trial.step)
        statuses = [record["status"] for record in records if record["kind"] == "end"]
        if statuses and statuses[-1] == "FINISHED" and trial.state is State.PENDING:
            trial.state = State.FINISHED
        trial.seconds = max(trial.seconds, active_seconds(records))

    def _read_metrics(self, trial: Trial, step: int, values: dict[str, float]) -> None:
        if not any(name.startswith("val/") for name in values):
            return
        pause_step = self._pause_steps.get(trial.number)
        if pause_step is not None and step > pause_step:  # validated before the run received its pause: no decision yet
            return
        first, *others = self._metrics
        trial.add_result(step, objective_sign(first) * values[first] if first in values else WORST)
        trial.other_metrics |= {name: values[name] for name in others if name in values}


def _restore_state(trial: Trial, record: dict[str, Any]) -> None:
    trial.state, trial.reason, trial.values = State(record["state"]), record["why"], current_values(record["values"])
    trial.copy_from, trial.seconds = record["copies"], record["seconds"]
    trial.other_metrics |= record["costs"]


def active_seconds(records: Sequence[dict[str, Any]]) -> float:
    """Returns the seconds that a run was active, from its journal. A killed process cannot report them itself."""
    start: int | None = None
    total = last = 0
    for record in records:
        if record["kind"] in ("run", "resumed"):
            total += last - start if start is not None else 0
            start = last = record["time_ms"]
        elif record["kind"] in ACTIVE_KINDS:
            last = record["time_ms"]
    return (total + last - start) / 1000 if start is not None else 0.0


def current_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns stored settings by today's dotted keys. An older journal may contain earlier names."""
    return {current_key(key): value for key, value in values.items()}
