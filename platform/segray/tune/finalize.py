"""After a sweep: the best settings as a file, runs of them with other seeds, a registered model and a report."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from segray.config import Config, flatten, merge, paths
from segray.core.errors import RunStoppedError, SegrayError, TrainingError
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL, Journal
from segray.tracking.sweep_uploader import SweepUploader
from segray.training import checkpoint_store
from segray.training.fit import fit, queue_registration
from segray.training.resume import is_finished
from segray.training.trial_context import TrialContext
from segray.tune import results
from segray.tune.journal import trial_dir
from segray.tune.report.write import write_report
from segray.tune.results import SweepCost
from segray.tune.setup import PreparedSweep
from segray.tune.trial import Trial, objective_sign
from segray.tune.trial_actor import resumable_run as begun_run

BEST = "best.yaml"

REPORT = "report"


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left.

    Attributes:
        name: of the sweep.
        folder: of the sweep, absolute.
        trials: all of them.
        metric: that decided.
        best: the trial with the best settings.
        front: trials that are not beaten in every metric; the best alone, if there is one metric.
        config: file with the best settings.
        seeds: val/miou of the runs with other seeds.
        mean: of these, none without any.
        deviation: their standard deviation, none with fewer than two.
        checkpoint: folder of what was registered.
        report: the page.
        cost: of all trials.
        ended: why the sweep ended before all trials were over, none if it did not.
        tracking_uri: MLflow store.
        run_id: MLflow's id of the sweep's own run, none if MLflow was away.
        model: name the checkpoint is registered under.
        version: its version there, none if MLflow was away.
    """

    name: str
    folder: str
    trials: list[Trial]
    metric: str
    best: Trial
    front: list[Trial]
    config: str
    seeds: list[float]
    mean: float | None
    deviation: float | None
    checkpoint: str
    report: str
    cost: SweepCost
    ended: str | None
    tracking_uri: str
    run_id: str | None = None
    model: str = ""
    version: str | None = None


def finalize_sweep(begun: PreparedSweep, ended: str | None, say: Callable[[str], None]) -> SweepResult:
    """Writes down what came of a sweep, and returns it.

    Args:
        begun: the sweep.
        ended: why it ended before all trials were over, none if it did not.
        say: called with the few lines a person should read.

    Raises:
        TrainingError: no trial was ever validated.
    """
    trials, config = begun.trials, begun.config
    best = results.best_trial(trials)
    if best is None:
        raise TrainingError(
            f"sweep {config.name} ended ({ended}) before any trial was validated; go on with --resume {begun.folder}."
        )
    file = _write_best(begun, best)
    tried = (_seeded(begun, best, number, say) for number in range(1, config.tune.seeds + 1))
    runs = [run for run in tried if run is not None]
    scores = [found.score if found.score is not None else nan for found in map(_best_saved, runs)]
    chosen = _registered(begun, best, runs, scores)
    cost = results.sweep_cost(trials, config.train.steps, config.train.workers, ended)
    page = write_report(begun.config, trials, best, scores, cost, begun.folder / REPORT)
    for picture in sorted((begun.folder / REPORT).iterdir()):
        begun.record.journal.write("image", file=f"{REPORT}/{picture.name}", place=REPORT)
    _write_metrics(begun.record.journal, config.tune.metric[0], trials, best, scores, cost)
    return SweepResult(
        name=begun.folder.name,
        folder=str(begun.folder),
        trials=trials,
        metric=config.tune.metric[0],
        best=best,
        front=results.pareto_front(trials, config.tune.metric) if len(config.tune.metric) > 1 else [best],
        config=str(file),
        seeds=scores,
        mean=mean(scores) if scores else None,
        deviation=stdev(scores) if len(scores) > 1 else None,
        checkpoint=str(chosen),
        report=str(page),
        cost=cost,
        ended=ended,
        tracking_uri=paths.redact(begun.tracking_uri),
        model=config.tracking.model,
    )


def with_registered_version(result: SweepResult, family: SweepUploader) -> SweepResult:
    """Returns a result with what MLflow made of it."""
    version = family.uploader_for(Path(result.checkpoint).parent).version
    return replace(result, run_id=family.run_id, version=version)


def _write_best(begun: PreparedSweep, best: Trial) -> Path:
    """Writes the best trial's settings as train takes them."""
    stored = checkpoint.load_config(trial_dir(begun.folder, best.number))
    text = to_yaml(stored, f"The best of sweep {begun.folder.name}: trial {best.number}.")
    file = begun.folder / BEST
    file.write_text(text)
    begun.record.journal.write("text", name=BEST, text=text)
    return file


def to_yaml(config: Config, comment: str) -> str:
    """Returns the settings of a run as YAML, but for its name and place, with a line above that says what it is.

    All that decide what is learned are there, so that no file below it changes them; of the others those that are not
    the default.
    """
    usual, decisive = flatten(Config()), config.training_settings()
    kept = {key: value for key, value in flatten(config).items() if key in decisive or value != usual.get(key)}
    kept = {key: value for key, value in kept.items() if key not in ("name", "results", "tracking.uri")}
    tree: dict[str, Any] = merge({}, kept)
    return f"# {comment}\n# python pipelines/train.py --config FILE\n{yaml.safe_dump(tree, sort_keys=False)}"


def _seeded(begun: PreparedSweep, best: Trial, number: int, say: Callable[[str], None]) -> Path | None:
    """Trains the best settings with another seed, unless that was done; returns the run's folder, none if it failed."""
    stored = checkpoint.load_config(trial_dir(begun.folder, best.number))
    folder = begun.folder / f"seed-{number}"
    train = stored.train.model_copy(update={"seed": (stored.train.seed + number) % 2**32})
    config = stored.model_copy(update={"name": folder.name, "train": train})
    if (folder / JOURNAL).exists() and is_finished(folder):
        return folder
    say(f"the best settings with seed {train.seed}, {number} of {begun.config.tune.seeds}.")
    part = TrialContext(begun.key, len(begun.trials) + number - 1, begun.slots.placement, begun.tracking_uri)
    try:
        fit(config, resume=begun_run(folder), say=lambda _line: None, part=part)
        _best_saved(folder)
    except RunStoppedError:
        raise
    except SegrayError as error:  # the sweep has its result without it
        say(f"the run with seed {train.seed} failed: {error}")
        return None
    return folder


def _best_saved(run: Path) -> checkpoint_store.CheckpointInfo:
    found = checkpoint_store.best_checkpoint(checkpoint_store.list_checkpoints(run))
    if found is None:
        raise TrainingError(f"{run} holds no checkpoint that was validated.")
    return found


def _registered(begun: PreparedSweep, best: Trial, runs: list[Path], scores: list[float]) -> Path:
    """Has the best checkpoint registered, of the runs with other seeds if there are any, and returns its folder."""
    run = trial_dir(begun.folder, best.number)
    if runs:
        run = runs[max(range(len(runs)), key=lambda index: scores[index])]
    folder = _best_saved(run).folder
    journal = Journal(run)
    if not any(record["kind"] == "model" for record in journal.records()):
        queue_registration(journal, folder, begun.config.tracking.model)
    return folder


def _write_metrics(
    journal: Journal, metric: str, trials: list[Trial], best: Trial, scores: list[float], cost: SweepCost
) -> None:
    """Writes what a sweep found among the metrics of its own run."""
    values = {
        "sweep/best_trial": float(best.number),
        "sweep/trials": float(len(trials)),
        "sweep/worker_hours": cost.worker_hours,
        "sweep/worker_hours_saved": cost.saved,
        "sweep/best": objective_sign(metric) * (best.best or 0.0),
    }
    if scores:
        values["sweep/seeds_mean"] = mean(scores)
    if len(scores) > 1:
        values["sweep/seeds_deviation"] = stdev(scores)
    journal.write("metrics", step=len(trials), values=values)
