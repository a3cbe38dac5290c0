"""Warm start of a search with the trials of an earlier sweep, read from MLflow."""

import json
from collections.abc import Mapping
from contextlib import suppress

import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from segray.config import Config, flatten, paths
from segray.core.errors import ConfigError, DataError, RegistryError, did_you_mean
from segray.core.logging import silence_libraries
from segray.tracking.client import error_summary, require_store
from segray.tracking.uploader import mlflow_metric_names
from segray.tune.curve_forecast import extrapolate_curve
from segray.tune.journal import KIND_TAG, RUN_NAME, SWEEP
from segray.tune.search import PriorTrial
from segray.tune.space import Dimension, Values, apply_values, dimensions

PAGE = 200
TRIAL = RUN_NAME.partition("{")[0]


def load_prior_trials(config: Config, uri: str) -> tuple[PriorTrial, ...]:
    """Returns the trials of the sweep that tune.warm_start names, restricted to those within the new search space.

    Args:
        config: settings of the new sweep.
        uri: URI of the MLflow store.

    Raises:
        RegistryError: the store does not respond.
        DataError: the sweep does not exist, or none of its trials can be used.
    """
    silence_libraries()
    require_store(uri, "an earlier sweep")
    name = str(config.tune.warm_start)
    try:
        client = MlflowClient(uri, uri)
        parent = _parent(client, config.tracking.experiment, name)
        trials = [run for run in _below(client, parent) if run.info.status != "FAILED"]
        space = _Space(config, parent)
        found = [known for run in trials if (known := space.known(client, run)) is not None]
    except MlflowException as error:
        raise RegistryError(f"MLflow at {paths.redact(uri)} cannot be read: {error_summary(error)}") from error
    if not found:
        raise DataError(
            f"tune.warm_start is {name}, which has {len(trials)} trials, none of them with all of "
            f"{', '.join(config.tune.space)} in this space and {', '.join(config.tune.metric)} reported."
        )
    return tuple(found)


def _parent(client: MlflowClient, experiment: str, name: str) -> Run:
    known = client.get_experiment_by_name(experiment)
    sweeps = f"tags.`{KIND_TAG}` = '{SWEEP}'"
    runs = [] if known is None else _all(client, str(known.experiment_id), sweeps)
    by_name = {str(run.info.run_name): run for run in reversed(runs)} | {str(run.info.run_id): run for run in runs}
    if name not in by_name:
        raise DataError(
            f"tune.warm_start is {name}, and experiment {experiment} has no sweep of that name or id"
            f"{did_you_mean(name, by_name) or '.'}"
        )
    return by_name[name]


def _below(client: MlflowClient, parent: Run) -> list[Run]:
    """Returns the runs of a sweep's trials, without the runs of its best settings with other seeds."""
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'"
    runs = _all(client, str(parent.info.experiment_id), query)
    return [run for run in runs if str(run.info.run_name).startswith(TRIAL)]


def _all(client: MlflowClient, experiment: str, query: str) -> list[Run]:
    """Returns all runs that match a query, newest first, from all pages of the result."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], query, max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


class _Space:
    """Converts the trials of an earlier sweep to the search space of a new one.

    Args:
        config: settings of the new sweep.
        parent: MLflow run of the earlier sweep.
    """

    def __init__(self, config: Config, parent: Run) -> None:
        self._config, self._dimensions = config, dimensions(config)
        self._last = int(parent.data.params.get("train.steps", 0))
        metrics = config.tune.metric
        self._keys = dict(zip(metrics, mlflow_metric_names(list(metrics)), strict=True))

    def known(self, client: MlflowClient, run: Run) -> PriorTrial | None:
        """Returns a prior trial, or `None` if the run is outside the search space or did not report all objectives."""
        values = self._values(run.data.params)
        if values is None or not all(key in run.data.metrics for key in self._keys.values()):
            return None
        found = {name: run.data.metrics[key] for name, key in self._keys.items()}
        first = self._config.tune.metric[0]
        history = {one.step: one.value for one in client.get_metric_history(run.info.run_id, self._keys[first])}
        steps = sorted(history)
        found[first] = extrapolate_curve(
            steps, [history[step] for step in steps], self._last
        )  # the trial may have been stopped early
        return PriorTrial(values, found)

    def _values(self, params: Mapping[str, str]) -> Values | None:
        values: Values = {}
        for dimension in self._dimensions:
            if dimension.key not in params:
                return None
            value = self._read(dimension, params[dimension.key])
            if not dimension.contains(value):
                return None
            values[dimension.key] = value
        return values

    def _read(self, dimension: Dimension, text: str) -> object:
        """Returns the value of a setting from its MLflow parameter text."""
        if dimension.is_choice:
            return next((value for value in dimension.values if self._spelt(dimension.key, value) == text), None)
        value = yaml.safe_load(text)
        try:
            return int(value) if dimension.is_integer else float(value)
        except (TypeError, ValueError):
            return None

    def _spelt(self, key: str, value: object) -> str:
        """Returns the MLflow parameter text of a choice: the text of the parsed setting, not of the sweep file."""
        with suppress(ConfigError):  # without the trial's other values the combination may be invalid
            value = flatten(apply_values(self._config, {key: value}))[key]
        return json.dumps(value) if isinstance(value, list | dict | tuple) else str(value)
