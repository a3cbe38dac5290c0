"""Results of a sweep: a file with the best settings, runs with other seeds, a registered model and a report."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from segray.config import Config, flatten, merge, paths
from segray.core.errors import RunStoppedError, SegrayError, TrainingError
from segray.core.logging import warn_on_error
from segray.core.report_folder import PAGE
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL, Journal
from segray.tracking.sweep_uploader import SweepUploader
from segray.training import checkpoint_store
from segray.training.fit import fit, queue_registration
from segray.training.runs import is_finished
from segray.training.trial_context import TrialContext
from segray.tune import results
from segray.tune.journal import trial_dir
from segray.tune.report.write import write_sweep_report
from segray.tune.results import SweepCost
from segray.tune.setup import PreparedSweep
from segray.tune.trial import Trial, objective_sign
from segray.tune.trial_run import resumable_run

BEST_CONFIG = "best.yaml"
REPORT = "report"


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep.

    Attributes:
        name: name of the sweep.
        folder: absolute path of the sweep folder.
        trials: all trials.
        metric: first objective, which selects the best trial.
        best: trial with the best settings.
        front: trials of the Pareto front; only the best trial if there is one objective.
        config: path of the file with the best settings.
        seeds: best value of `metric` of each run with another seed.
        mean: mean of `seeds`; `None` if there are none.
        deviation: standard deviation of `seeds`; `None` if there are fewer than two.
        checkpoint: folder of the registered checkpoint.
        report: path of the report page.
        cost: cost of all trials.
        ended: reason for an early end of the sweep; `None` if all trials were over.
        tracking_uri: URI of the MLflow store, without its password.
        run_id: MLflow id of the sweep's own run; `None` if MLflow was unavailable.
        model: name of the registered model.
        version: version of the registered model; `None` if MLflow was unavailable.
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


def finalize_sweep(sweep: PreparedSweep, end_reason: str | None, say: Callable[[str], None]) -> SweepResult:
    """Writes the results of a sweep and returns them.

    Trains the best settings with other seeds, queues the best checkpoint for registration and writes the report.

    Args:
        sweep: sweep to finalize.
        end_reason: reason for an early end of the sweep; `None` if all trials were over.
        say: callable that receives messages for the user.

    Raises:
        TrainingError: no trial was validated.
    """
    trials, config = sweep.trials, sweep.config
    best = results.best_trial(trials)
    if best is None:
        raise TrainingError(
            f"sweep {config.name} ended before a trial was validated ({end_reason}); resume it with "
            f"--resume {sweep.folder}."
        )
    best_config = _write_best_config(sweep, best)
    seed_runs = (_train_with_seed(sweep, best, number, say) for number in range(1, config.tune.seeds + 1))
    runs = [run for run in seed_runs if run is not None]
    sign = objective_sign(config.tune.metrics[0])
    scores = [sign * _best_score(run, config.tune.metrics[0]) for run in runs]
    registered = _queue_best_checkpoint(sweep, best, runs)
    cost = results.sweep_cost(trials, config.train.steps, config.train.workers, end_reason)
    page = sweep.folder / REPORT / PAGE
    with warn_on_error(f"the report of sweep {sweep.folder.name} cannot be written"):
        write_sweep_report(config, trials, best, scores, cost, page.parent)
        for file in sorted(page.parent.iterdir()):
            sweep.record.journal.write("image", file=f"{REPORT}/{file.name}", place=REPORT)
    _write_metrics(sweep.record.journal, config.tune.metrics[0], trials, best, scores, cost)
    return SweepResult(
        name=sweep.folder.name,
        folder=str(sweep.folder),
        trials=trials,
        metric=config.tune.metrics[0],
        best=best,
        front=results.pareto_front(trials, config.tune.metrics) if len(config.tune.metrics) > 1 else [best],
        config=str(best_config),
        seeds=scores,
        mean=mean(scores) if scores else None,
        deviation=stdev(scores) if len(scores) > 1 else None,
        checkpoint=str(registered),
        report=str(page),
        cost=cost,
        ended=end_reason,
        tracking_uri=paths.redact(sweep.tracking_uri),
        model=config.tracking.model,
    )


def with_registered_version(result: SweepResult, uploader: SweepUploader) -> SweepResult:
    """Returns a result with the MLflow run id and the registered version."""
    version = uploader.uploader_for(Path(result.checkpoint).parent).version
    return replace(result, run_id=uploader.run_id, version=version)


def _write_best_config(sweep: PreparedSweep, best: Trial) -> Path:
    """Writes the best trial's settings to a file that `pipelines/train.py` accepts, and returns its path."""
    stored = checkpoint.load_config(trial_dir(sweep.folder, best.number))
    text = to_yaml(stored, f"Best settings of sweep {sweep.folder.name}: trial {best.number}.")
    file = sweep.folder / BEST_CONFIG
    file.write_text(text)
    sweep.record.journal.write("text", name=BEST_CONFIG, text=text)
    return file


def to_yaml(config: Config, comment: str) -> str:
    """Returns the settings of a run as YAML, without its name and paths, below a comment line.

    The YAML has all settings that affect training, so that no other configuration file changes them. Other settings
    are included only if they differ from their defaults.
    """
    defaults, training = flatten(Config()), config.training_settings()
    included = {
        key: value
        for key, value in flatten(config).items()
        if key not in ("name", "results", "tracking.uri") and (key in training or value != defaults.get(key))
    }
    tree: dict[str, Any] = merge({}, included)
    return f"# {comment}\n# python pipelines/train.py --config FILE\n{yaml.safe_dump(tree, sort_keys=False)}"


def _train_with_seed(sweep: PreparedSweep, best: Trial, number: int, say: Callable[[str], None]) -> Path | None:
    """Trains the best settings with another seed, unless that run is finished.

    Returns the folder of the run, or `None` if it failed.
    """
    stored = checkpoint.load_config(trial_dir(sweep.folder, best.number))
    folder = sweep.folder / f"seed-{number}"
    train = stored.train.model_copy(update={"seed": (stored.train.seed + number) % 2**32})
    config = stored.model_copy(update={"name": folder.name, "train": train})
    if (folder / JOURNAL).exists() and is_finished(folder):
        return folder
    say(f"training the best settings with seed {train.seed} ({number} of {sweep.config.tune.seeds}).")
    context = TrialContext(
        sweep.key,
        len(sweep.trials) + number - 1,
        sweep.slots.placement,
        sweep.tracking_uri,
        initial_weights=sweep.initial_weights,
    )
    try:
        fit(config, resume=resumable_run(folder), say=lambda _line: None, trial=context)
        _best_checkpoint(folder, config.train.score)
    except RunStoppedError:
        raise
    except SegrayError as error:  # the sweep has a result without this run
        say(f"the run with seed {train.seed} failed: {error}")
        return None
    return folder


def _best_checkpoint(run: Path, score: str) -> checkpoint_store.CheckpointInfo:
    best = checkpoint_store.best_checkpoint(checkpoint_store.list_checkpoints(run, score=score))
    if best is None:
        raise TrainingError(f"{run} contains no checkpoint with a value of {score}.")
    return best


def _best_score(run: Path, score: str) -> float:
    """Returns the best value of a score in a run; higher is better (negated if it is minimised)."""
    best = _best_checkpoint(run, score).score
    return nan if best is None else best


def _queue_best_checkpoint(sweep: PreparedSweep, best: Trial, runs: list[Path]) -> Path:
    """Queues the best checkpoint for registration and returns its folder.

    The checkpoint is from the best run with another seed, or from the best trial if there are no such runs.
    """
    metric = sweep.config.tune.metrics[0]
    run = max(runs, key=lambda run: _best_score(run, metric), default=trial_dir(sweep.folder, best.number))
    folder = _best_checkpoint(run, metric).folder
    journal = Journal(run)
    if not any(record["kind"] == "model" for record in journal.records()):
        queue_registration(journal, folder, sweep.config.tracking.model)
    return folder


def _write_metrics(
    journal: Journal, metric: str, trials: list[Trial], best: Trial, scores: list[float], cost: SweepCost
) -> None:
    """Writes the results of a sweep as metrics of its own run."""
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
