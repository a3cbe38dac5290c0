"""Warm start of a search with the trials of an earlier sweep, read from MLflow."""

import json
from collections.abc import Mapping
from contextlib import suppress

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from segray.config import Config, flatten, paths
from segray.config.renamed import current_key
from segray.core.errors import ConfigError, DataError, RegistryError, did_you_mean
from segray.core.logging import silence_libraries
from segray.core.parsing import parse_yaml
from segray.tracking.client import error_summary, require_store
from segray.tracking.metric_names import mlflow_metric_names
from segray.tracking.tags import KIND_TAG, SWEEP
from segray.tune.curve_forecast import extrapolate_curve
from segray.tune.journal import RUN_NAME
from segray.tune.search import PriorTrial
from segray.tune.space import Dimension, Values, apply_values, dimensions

PAGE_SIZE = 200
TRIAL_PREFIX = RUN_NAME.partition("{")[0]


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
        sweep = _find_sweep(client, config.tracking.experiment, name)
        runs = [run for run in _trial_runs(client, sweep) if run.info.status != "FAILED"]
        converter = _TrialConverter(config, sweep)
        trials = tuple(trial for run in runs if (trial := converter.convert(client, run)) is not None)
    except MlflowException as error:
        raise RegistryError(f"MLflow at {paths.redact(uri)} cannot be read: {error_summary(error)}") from error
    if not trials:
        raise DataError(
            f"tune.warm_start is {name}, a sweep with {len(runs)} trials; none of them has values of "
            f"{', '.join(config.tune.space)} within this space and reported {', '.join(config.tune.metrics)}."
        )
    return trials


def _find_sweep(client: MlflowClient, experiment_name: str, name: str) -> Run:
    """Returns the sweep's run with a name (the latest one) or an MLflow id.

    Raises:
        DataError: the experiment has no such sweep.
    """
    experiment = client.get_experiment_by_name(experiment_name)
    query = f"tags.`{KIND_TAG}` = '{SWEEP}'"
    runs = [] if experiment is None else _search_runs(client, str(experiment.experiment_id), query)
    sweeps = {str(run.info.run_name): run for run in reversed(runs)} | {str(run.info.run_id): run for run in runs}
    if name not in sweeps:
        raise DataError(
            f"tune.warm_start is {name}, but experiment {experiment_name} has no sweep with this name or id"
            f"{did_you_mean(name, sweeps) or '.'}"
        )
    return sweeps[name]


def _trial_runs(client: MlflowClient, sweep: Run) -> list[Run]:
    """Returns the runs of a sweep's trials, without the runs of its best settings with other seeds."""
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{sweep.info.run_id}'"
    runs = _search_runs(client, str(sweep.info.experiment_id), query)
    return [run for run in runs if str(run.info.run_name).startswith(TRIAL_PREFIX)]


def _search_runs(client: MlflowClient, experiment_id: str, query: str) -> list[Run]:
    """Returns all runs that match a query, newest first, from all pages of the result."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=PAGE_SIZE, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


class _TrialConverter:
    """Converts the trials of an earlier sweep to the search space of a new one.

    Args:
        config: settings of the new sweep.
        sweep: MLflow run of the earlier sweep.
    """

    def __init__(self, config: Config, sweep: Run) -> None:
        self._config, self._dimensions = config, dimensions(config)
        self._last_step = int(sweep.data.params.get("train.steps", 0))
        metrics = config.tune.metrics
        self._keys = dict(zip(metrics, mlflow_metric_names(list(metrics)), strict=True))

    def convert(self, client: MlflowClient, run: Run) -> PriorTrial | None:
        """Returns a prior trial, or `None` if the run is outside the search space or did not report all objectives."""
        values = self._values({current_key(key): text for key, text in run.data.params.items()})
        if values is None or not all(key in run.data.metrics for key in self._keys.values()):
            return None
        metrics = {name: run.data.metrics[key] for name, key in self._keys.items()}
        first = self._config.tune.metrics[0]
        history = client.get_metric_history(run.info.run_id, self._keys[first])
        curve = {metric.step: metric.value for metric in history}
        steps = sorted(curve)
        # The trial may have been stopped early.
        metrics[first] = extrapolate_curve(steps, [curve[step] for step in steps], self._last_step)
        return PriorTrial(values, metrics)

    def _values(self, params: Mapping[str, str]) -> Values | None:
        values: Values = {}
        for dimension in self._dimensions:
            if dimension.key not in params:
                return None
            value = self._parse(dimension, params[dimension.key])
            if not dimension.contains(value):
                return None
            values[dimension.key] = value
        return values

    def _parse(self, dimension: Dimension, text: str) -> object:
        """Returns the value of a setting from its MLflow parameter text."""
        if dimension.is_choice:
            return next((value for value in dimension.values if self._param_text(dimension.key, value) == text), None)
        try:
            value = parse_yaml(text)
            return int(value) if dimension.is_integer else float(value)
        except (TypeError, ValueError):
            return None

    def _param_text(self, key: str, value: object) -> str:
        """Returns the MLflow parameter text of a choice: the text of the parsed setting, not of the sweep file."""
        with suppress(ConfigError):  # without the trial's other values the combination may be invalid
            value = flatten(apply_values(self._config, {key: value}))[key]
        return json.dumps(value) if isinstance(value, list | dict | tuple) else str(value)
