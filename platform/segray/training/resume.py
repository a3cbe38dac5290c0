"""Resuming a run: selection of the run, and comparison with its settings, dataset and weights."""

from collections.abc import Collection
from pathlib import Path

from torch import nn

from segray.config import Config, flatten, paths
from segray.config.renamed import current_key
from segray.core.errors import ConfigError, ResumeError, format_list
from segray.data.manifest import Manifest
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.training import checkpoint_store, runs


def find_latest_run(config: Config, dataset: str) -> Path | None:
    """Returns the folder of the latest unfinished run with the same training settings and data, or `None`.

    Args:
        config: settings of the run, with resolved paths. If it has a name, only the run of that name matches.
        dataset: digest of the dataset manifest.
    """

    def is_match(run: Path) -> bool:
        stored = checkpoint.load_config(run)
        return stored.digest == config.digest and not stored.tune.space and _dataset_digest(run) in (dataset, None)

    return runs.find_latest(config, is_match)


def resolve_run(resume: str) -> Path:
    """Returns the run folder for the value of --resume, which is a run folder or a checkpoint of the run.

    Raises:
        ResumeError: the path is not a run.
    """
    path = Path(paths.absolute_path("--resume", resume))
    run = path.parent if checkpoint_store.DIR_PATTERN.search(path.name) else path
    runs.require_run(run, resume, "run")
    if checkpoint.load_config(run).tune.space:
        raise ResumeError(f"--resume is {resume}, which is a sweep; use pipelines/tune.py --resume {resume}.")
    return run


def require_resumable(run: Path, resume: str) -> None:
    """Checks that a run can be resumed. The caller has locked the run.

    Args:
        run: run folder.
        resume: value of --resume.

    Raises:
        ResumeError: the run is finished, or `resume` is a checkpoint other than the latest.
    """
    if runs.is_finished(run):
        raise ResumeError(f"run {run} is finished; start a new run from it with --model.init {run}/step-N.")
    requested = Path(resume).name
    if not checkpoint_store.DIR_PATTERN.search(requested):
        return
    info = checkpoint_store.latest_checkpoint(run)
    latest = None if info is None else info.folder
    if latest is None or latest.name != requested:
        raise ResumeError(
            f"--resume is {resume}, but the run's latest checkpoint is {latest}; expected the latest one. To "
            f"start a new run from other weights, use --model.init {run / requested}."
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
    allowed = {current_key(name) for name in allowed}
    _validate_allowed(allowed, config)
    stored_data = _stored_data(run)
    current_data = {"dataset": manifest.digest, "classes": manifest.classes.names}
    changes = runs.diff(
        stored.training_settings() | stored_data,
        config.training_settings() | {key: current_data[key] for key in stored_data},
    )
    rejected = [line for key, line in changes.items() if key not in allowed]
    if rejected:
        raise ResumeError(
            f"{run.name} was started with other settings:{format_list(rejected)}\n"
            f"Start a new run, or accept these changes with --allow {','.join(changes)}."
        )
    return [*changes.values(), *runs.diff(_free_settings(stored, config), _free_settings(config, config)).values()]


def require_matching_weights(run: Path, model: nn.Module) -> None:
    """Checks that the latest weights of a run, if any, match the model used to resume it.

    Raises:
        ResumeError: names or shapes differ; the message lists the first differences.
    """
    info = checkpoint_store.latest_checkpoint(run)
    if info is None:
        return
    latest = info.folder
    stored = {name: list(value.shape) for name, value in checkpoint.load_weights(latest, live=True).items()}
    differences = runs.diff(stored, {name: list(value.shape) for name, value in model.state_dict().items()})
    if differences:
        raise ResumeError(
            f"the weights of {latest} do not match the model:{format_list([*differences.values()], 3)}\n"
            f"Start a new run from the weights that match, with --model.init {latest}."
        )


def _validate_allowed(allowed: Collection[str], config: Config) -> None:
    names = {*config.training_settings(), "dataset", "classes"}
    for name in allowed:
        if name not in names:
            raise ConfigError(
                f"--allow is {name}; expected a setting that affects the training result, dataset or classes."
            )


def _stored_data(run: Path) -> dict[str, object]:
    """Returns the digest and the class names of the dataset of a run, as far as the run has stored them."""
    data: dict[str, object] = {}
    digest = _dataset_digest(run)
    if digest is not None:
        data["dataset"] = digest
    latest = checkpoint_store.latest_checkpoint(run)
    if latest is not None:
        data["classes"] = checkpoint.load_classes(latest.folder).names
    return data


def _dataset_digest(run: Path) -> str | None:
    """Returns the digest of the dataset last used by a run; `None` if its journal does not contain one."""
    starts = [record for record in Journal(run).records() if record["kind"] in ("run", "resumed")]
    digests = [record.get("dataset", {}).get("digest") for record in starts]
    return next((digest for digest in reversed(digests) if isinstance(digest, str)), None)


def _free_settings(config: Config, current: Config) -> dict[str, object]:
    """Returns the values of the settings that may change, except the name and the results folder of the run."""
    fixed = {*current.training_settings(), "name", "results"}
    names = [name for name in flatten(current) if name not in fixed]
    values = flatten(config)
    return {name: values[name] for name in names if name in values}
