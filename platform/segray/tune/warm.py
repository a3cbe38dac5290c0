"""What an earlier sweep found, read from MLflow, for a search that knows it from the start."""

import json

import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from segray import places, registry
from segray.config import Config
from segray.errors import DataError, RegistryError, nearest
from segray.quiet import quieten
from segray.tracking.upload import metric_keys
from segray.tune.search import Known
from segray.tune.space import Dimension, Values, dimensions

MOST_RUNS = 1000


def earlier(config: Config, uri: str) -> tuple[Known, ...]:
    """Returns the trials of the sweep that tune.warm_start names, as far as they lie in this one's space.

    Args:
        config: of the new sweep.
        uri: MLflow store.

    Raises:
        RegistryError: the store does not answer.
        DataError: there is no such sweep, or none of its trials can be used.
    """
    quieten()
    registry.check_there(uri, "an earlier sweep")
    name = str(config.tune.warm_start)
    try:
        client = MlflowClient(uri, uri)
        parent = _parent(client, config.tracking.experiment, name)
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'"
        trials = client.search_runs([parent.info.experiment_id], query, max_results=MOST_RUNS)
    except MlflowException as error:
        raise RegistryError(f"MLflow at {places.masked(uri)} cannot be read: {error}") from error
    space = dimensions(config)
    found = [known for run in trials if (known := _known(run, space, config.tune.metric)) is not None]
    if not found:
        raise DataError(
            f"tune.warm_start is {name}, which has {len(trials)} trials, none of them with all of "
            f"{', '.join(one.key for one in space)} in this space and {', '.join(config.tune.metric)} reported."
        )
    return tuple(found)


def _parent(client: MlflowClient, experiment: str, name: str) -> Run:
    known = client.get_experiment_by_name(experiment)
    runs = [] if known is None else client.search_runs([known.experiment_id], max_results=MOST_RUNS)
    by_name = {str(run.info.run_name): run for run in reversed(runs)} | {str(run.info.run_id): run for run in runs}
    if name not in by_name:
        raise DataError(
            f"tune.warm_start is {name}, and experiment {experiment} has no run of that name or id"
            f"{nearest(name, by_name) or '.'}"
        )
    return by_name[name]


def _known(run: Run, space: tuple[Dimension, ...], metrics: tuple[str, ...]) -> Known | None:
    keys = dict(zip(metrics, metric_keys(list(metrics)), strict=True))
    if not all(key in run.data.metrics for key in keys.values()):
        return None
    values: Values = {}
    for dimension in space:
        if dimension.key not in run.data.params:
            return None
        value = _read(dimension, run.data.params[dimension.key])
        if not dimension.holds(value):
            return None
        values[dimension.key] = value
    return Known(values, {name: run.data.metrics[key] for name, key in keys.items()})


def _read(dimension: Dimension, text: str) -> object:
    """Returns a setting as it was, from how it is spelt in MLflow."""
    if dimension.is_choice:
        return next((value for value in dimension.values if _spelt(value) == text), None)
    value = yaml.safe_load(text)
    try:
        return int(value) if dimension.is_whole else float(value)
    except (TypeError, ValueError):
        return None


def _spelt(value: object) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
