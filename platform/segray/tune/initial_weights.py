"""Initial weights of a sweep's trials: each registered version is downloaded once, by the driver of the sweep."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from segray.config import Config
from segray.tracking.references import REGISTRY_SCHEMES
from segray.tracking.registry import download_checkpoint
from segray.training.setup import initial_weights_reference
from segray.tune import space

SETTINGS = ("model.init", "model.variant")
"""Settings that determine the reference of the initial weights."""


@contextmanager
def download_initial_weights(config: Config, folder: Path, tracking_uri: str) -> Iterator[Mapping[str, Path]]:
    """Context manager that downloads the initial weights of all trials, and removes them at the end of the sweep.

    Args:
        config: settings of the sweep.
        folder: sweep folder, which the nodes of all trials can read.
        tracking_uri: URI of the MLflow store.

    Returns:
        Checkpoint folder of each registered version that a trial may start from, by its reference.

    Raises:
        RegistryError: see `download_checkpoint`.
    """
    references = sorted(_references(config))
    if not references:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix=".initial-weights-", dir=folder) as temporary:
        downloads = {}
        for number, reference in enumerate(references):
            target = Path(temporary) / str(number)
            target.mkdir()
            downloads[reference] = download_checkpoint(reference, tracking_uri, target)
        yield downloads


def _references(config: Config) -> set[str]:
    """Returns the references to the registry among the initial weights of all trials."""
    choices = [dimension for dimension in space.dimensions(config) if dimension.key in SETTINGS]
    combinations = product(*(dimension.values for dimension in choices))
    keys = [dimension.key for dimension in choices]
    configs = [space.apply_values(config, dict(zip(keys, values, strict=True))) for values in combinations]
    references = {initial_weights_reference(trial_config) for trial_config in configs}
    return {reference for reference in references if reference is not None and reference.startswith(REGISTRY_SCHEMES)}
