"""Resuming a run: selection of the run and comparison of its settings."""

import fcntl
from collections.abc import Collection
from pathlib import Path
from typing import IO

from torch import nn

from segray.config import Config, flatten, paths
from segray.core.errors import CheckpointError, ConfigError, ResumeError, format_list
from segray.data.manifest import Manifest
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL, Journal
from segray.training import checkpoint_store

LOCK = "lock"


def find_latest_run(config: Config, dataset: str) -> Path | None:
    """Returns the folder of the latest unfinished run with the same training settings and data, or `None`.

    Args:
        config: settings of the run, with resolved paths. If it has a name, only the run of that name matches.
        dataset: digest of the dataset manifest.
    """
    runs = list(Path(config.results).glob(f"{config.name or '*'}/{JOURNAL}"))
    runs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path.parent for path in runs if _goes_on(path.parent, config, dataset)), None)


def resolve_run(resume: str) -> Path:
    """Returns the run folder for the value of --resume, which is a run folder or its latest checkpoint.

    Raises:
        ResumeError: the path is not a resumable run, the run is finished, or the checkpoint is not its latest.
    """
    folder = Path(paths.absolute_path("--resume", resume))
    run = folder.parent if checkpoint_store.DIR_PATTERN.search(folder.name) else folder
    if not (run / JOURNAL).exists() or not (run / checkpoint.CONFIG).exists():
        raise ResumeError(f"--resume is {resume}, which holds no run; expected a folder with {JOURNAL} in it, or auto.")
    if checkpoint.load_config(run).tune.space:
        raise ResumeError(f"--resume is {resume}, a sweep; go on with it by pipelines/tune.py --resume {resume}.")
    if is_finished(run):
        raise ResumeError(
            f"--resume is {resume}, a run that is finished; start another, with --model.init {run}/step-N."
        )
    _check_latest(run, folder)
    return run


def _goes_on(run: Path, config: Config, dataset: str) -> bool:
    try:
        stored = checkpoint.load_config(run)
        same = stored.digest == config.digest and not stored.tune.space and _dataset_of(run) in (dataset, None)
        return same and not is_finished(run) and not is_locked(run)
    except CheckpointError:
        return False


def lock_run(run: Path) -> IO[str]:
    """Locks a run folder for training.

    The lock lasts until the returned file is closed or the process ends.

    Raises:
        ResumeError: another process holds the lock.
    """
    lock = (run / LOCK).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ResumeError(f"{run} is being trained by another process; wait for it, or end it first.") from error
    return lock


def is_locked(run: Path) -> bool:
    """Returns `True` if a process is training the run."""
    try:
        lock_run(run).close()
    except ResumeError:
        return True
    return False


def is_finished(run: Path) -> bool:
    """Returns `True` if the run finished successfully."""
    kinds = [(record["kind"], record.get("status")) for record in Journal(run).records()]
    ended = [number for number, (kind, _) in enumerate(kinds) if kind == "end"]
    return bool(ended) and kinds[ended[-1]] == ("end", "FINISHED")


def _check_latest(run: Path, folder: Path) -> None:
    if folder == run:
        return
    whole = checkpoint_store.list_checkpoints(run)
    if not whole or whole[-1].folder != folder:
        latest = whole[-1].folder if whole else "none"
        raise ResumeError(
            f"--resume is {folder}, and the run's latest checkpoint is {latest}; a run goes on from its latest; "
            f"to start another from this one's weights, use --model.init {folder}."
        )


def diff_settings(run: Path, config: Config, manifest: Manifest, allowed: Collection[str]) -> list[str]:
    """Compares a run with the settings and the dataset used to resume it.

    Args:
        run: run folder.
        config: settings to resume with.
        manifest: manifest of the dataset to resume with.
        allowed: names of settings, "dataset" or "classes" that may differ even though they affect the training result.

    Returns:
        One line for each difference. All of them are allowed.

    Raises:
        ResumeError: a setting that affects the training result differs and is not allowed.
        ConfigError: an allowed name is none of the valid names.
    """
    stored = checkpoint.load_config(run)
    ours, theirs = config.training_settings(), stored.training_settings()
    _check_names(allowed, ours)
    known = {key: (theirs.get(key), ours.get(key)) for key in {**theirs, **ours}} | _of_dataset(run, manifest)
    differ = {key: pair for key, pair in known.items() if pair[0] != pair[1]}
    refused = [_line(key, pair) for key, pair in differ.items() if key not in allowed]
    if refused:
        raise ResumeError(
            f"{run.name} was started otherwise:{format_list(refused)}\n"
            f"Start a new run, or take these differences on with --allow {','.join(differ)}."
        )
    free = {key: pair for key, pair in _free(stored, config).items() if pair[0] != pair[1]}
    return [_line(key, pair) for key, pair in (differ | free).items()]


def require_matching_weights(run: Path, model: nn.Module) -> None:
    """Checks that the latest weights of a run, if any, match the model used to resume it.

    Raises:
        ResumeError: names or shapes differ; the message lists the first differences.
    """
    whole = checkpoint_store.list_checkpoints(run)
    if not whole:
        return
    theirs = {name: list(value.shape) for name, value in checkpoint.load_weights(whole[-1].folder, live=True).items()}
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    differ = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if differ:
        lines = [f"{name}: {theirs.get(name, 'none')} there, {ours.get(name, 'none')} now" for name in differ]
        raise ResumeError(
            f"the weights of {whole[-1].folder} are of another model:{format_list(lines, 3)}\n"
            f"A run cannot go on with it; start a new one from what fits, with --model.init {whole[-1].folder}."
        )


def _line(key: str, pair: tuple[object, object]) -> str:
    return f"{key}: {pair[0]} so far, {pair[1]} now"


def _check_names(allowed: Collection[str], settings: Collection[str]) -> None:
    for name in allowed:
        if name not in settings and name not in ("dataset", "classes"):
            raise ConfigError(
                f"--allow is {name}; expected a setting that decides what is learned, dataset or classes."
            )


def _of_dataset(run: Path, manifest: Manifest) -> dict[str, tuple[object, object]]:
    """Returns pairs of (stored, current) dataset digest and class names."""
    pairs: dict[str, tuple[object, object]] = {}
    digest = _dataset_of(run)
    if digest is not None:
        pairs["dataset"] = digest, manifest.digest
    whole = checkpoint_store.list_checkpoints(run)
    if whole:
        pairs["classes"] = checkpoint.load_classes(whole[-1].folder).names, manifest.classes.names
    return pairs


def _dataset_of(run: Path) -> str | None:
    """Returns the digest of the dataset last used by a run; `None` if its journal does not contain one."""
    digests = [record["dataset"]["digest"] for record in Journal(run).records() if "dataset" in record]
    return digests[-1] if digests else None


def _free(stored: Config, config: Config) -> dict[str, tuple[object, object]]:
    """Returns pairs of (stored, current) values of the settings that may change.

    The name and the results folder of the run are excluded.
    """
    ours, theirs, decisive = flatten(config), flatten(stored), config.training_settings()
    return {key: (theirs[key], ours[key]) for key in ours if key not in decisive and key not in ("name", "results")}
