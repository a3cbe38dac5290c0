"""A sweep on the terminal: its estimated cost, a live table of its trials (plain lines in a log), and its result."""

import threading
from collections.abc import Sequence
from time import monotonic
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segray.cli.progress import format_duration
from segray.tune.finalize import SweepResult
from segray.tune.space import Values, dimensions
from segray.tune.sweep import SweepView
from segray.tune.trial import State, Trial, objective_sign

POLL_S = 0.5
LINE_S = 30.0
MAX_SHOWN = 20


def print_estimate(console: Console, view: SweepView) -> None:
    """Prints the search space and the estimated cost of a sweep."""
    config, estimate = view.config, view.estimate
    console.print(
        f"sweep {view.folder.name}: {estimate.trials} trials of {config.train.steps} steps, "
        f"{estimate.num_concurrent} concurrent",
        highlight=False,
    )
    for dimension in dimensions(config):
        console.print(f"  {dimension.key:<22} {dimension}", highlight=False)
    fraction = estimate.expected / estimate.steps
    console.print(
        f"  {config.tune.search} search, scheduler {config.tune.scheduler}: about {estimate.expected:,} of "
        f"{estimate.steps:,} steps ({fraction:.0%})",
        highlight=False,
    )
    if estimate.hours is not None and estimate.worker_hours is not None:
        console.print(
            f"  about {format_duration(estimate.hours * 3600)}, {estimate.worker_hours:.2f} worker hours",
            highlight=False,
        )
    budget = {key: value for key, value in config.tune.budget.model_dump().items() if value is not None}
    if budget:
        limits = ", ".join(f"{key} {value:g}" for key, value in budget.items())
        console.print(f"  limited by tune.budget: {limits}", highlight=False)


class SweepProgress:
    """Follows the trials of a sweep in a background thread until the context ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._printed_states: dict[int, State] = {}
        self._printed = monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def follow(self, view: SweepView) -> None:
        """Prints the estimate of a sweep and starts to follow it."""
        print_estimate(self._console, view)
        self._thread = threading.Thread(target=self._follow, args=(view,), daemon=True)
        self._thread.start()

    def _follow(self, view: SweepView) -> None:
        if not self._console.is_terminal:
            while not self._stopped.wait(POLL_S):
                self._print_changes(view)
            self._print_changes(view)
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not self._stopped.wait(POLL_S):
                live.update(render_table(view), refresh=True)
        self._console.print(render_table(view))

    def _print_changes(self, view: SweepView) -> None:
        """Prints one line per trial with a new state, and the overall progress every LINE_S seconds."""
        for trial in list(view.controller.trials):
            if self._printed_states.get(trial.number) != trial.state and trial.state is not State.PENDING:
                self._printed_states[trial.number] = trial.state
                self._print(format_trial(view, trial))
        if monotonic() - self._printed >= LINE_S:
            self._print(format_progress(view))

    def _print(self, line: str) -> None:
        self._printed = monotonic()
        self._console.print(line, highlight=False)


def format_trial(view: SweepView, trial: Trial) -> str:
    """Returns a trial as one line of text."""
    metric = view.config.tune.metrics[0]
    value = "" if trial.value is None else f"  {metric} {objective_sign(metric) * trial.value:.4f}"
    reason = f"  ({trial.reason})" if trial.reason else ""
    step = f"  step {trial.step}/{view.config.train.steps}" if trial.curve else ""
    return f"trial {trial.number:>3} {trial.state:<8}{step}{value}  {format_settings(trial.values)}{reason}"


def format_progress(view: SweepView) -> str:
    """Returns the progress of a sweep as one line of text."""
    trials = view.controller.trials
    counts = {state: sum(trial.state is state for trial in trials) for state in State}
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"{len(trials)} of {view.estimate.trials} trials: {states}; {_format_times(view)}"


def _format_times(view: SweepView) -> str:
    """Returns the elapsed time and an estimate of the remaining time at the same rate."""
    completed = sum(trial.step for trial in view.controller.trials)
    elapsed = view.spent_s()
    if not completed:
        return f"{format_duration(elapsed)} elapsed"
    remaining = max(0.0, elapsed * (view.estimate.expected / completed - 1))
    return f"{format_duration(elapsed)} elapsed, about {format_duration(remaining)} remaining"


def render_table(view: SweepView) -> Group:
    """Returns the progress of a sweep and a table of its trials: running trials first, then the best."""
    return Group(Text(format_progress(view)), _table(view))


def _table(view: SweepView) -> Table:
    metrics, keys = view.config.tune.metrics, [dimension.key for dimension in dimensions(view.config)]
    table = Table(show_edge=False, pad_edge=False, header_style="")
    for name in ("trial", "", "step"):
        table.add_column(name, justify="right" if name != "" else "left")
    for name in (*metrics, *keys):
        table.add_column(name, justify="right")
    for trial in _select_trials(view.controller.trials):
        first = None if trial.best is None else objective_sign(metrics[0]) * trial.best
        values = [first, *(trial.other_metrics.get(name) for name in metrics[1:])]
        table.add_row(
            str(trial.number),
            str(trial.state),
            str(trial.step),
            *("" if value is None else f"{value:.4g}" for value in values),
            *(_format_value(trial.values[key]) for key in keys),
        )
    return table


def _select_trials(trials: Sequence[Trial]) -> list[Trial]:
    ranked = sorted(trials, key=lambda trial: (trial.state is not State.RUNNING, -(trial.best or -1e9)))
    return ranked[:MAX_SHOWN]


def format_settings(values: Values) -> str:
    """Returns settings as one line of text."""
    return "  ".join(f"{key} {_format_value(value)}" for key, value in values.items())


def _format_value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_result(console: Console, result: SweepResult) -> None:
    """Prints the result of a sweep."""
    console.print()
    if result.ended:
        console.print(f"the sweep ended before all trials finished: {result.ended}.", highlight=False)
    cost = result.cost
    console.print(
        f"{len(result.trials)} trials, {cost.steps:,} of {cost.whole:,} steps ({cost.steps / cost.whole:.0%}), "
        f"{cost.worker_hours:.2f} worker hours, {cost.saved:.2f} saved by early stopping",
        highlight=False,
    )
    if len(result.front) > 1:
        numbers = ", ".join(str(trial.number) for trial in result.front)
        console.print(f"Pareto front: trials {numbers}", highlight=False)
    value = objective_sign(result.metric) * (result.best.best or 0.0)
    best = f"best: trial {result.best.number}  {format_settings(result.best.values)}"
    console.print(f"{best}  {result.metric} {value:.4f}", highlight=False)
    if result.mean is not None:
        deviation = "" if result.deviation is None else f", standard deviation {result.deviation:.4f}"
        console.print(
            f"{result.metric} with {len(result.seeds)} additional seeds: mean {result.mean:.4f}{deviation}",
            highlight=False,
        )
