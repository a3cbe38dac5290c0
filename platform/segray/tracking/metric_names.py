"""Names of metrics that MLflow accepts, and batches of the size that it accepts."""

import hashlib
from collections import Counter
from collections.abc import Mapping

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis

MAX_METRICS = 1000
"""Maximum number of metrics in a request."""
MAX_NAME_LENGTH = 250


def log_metrics_and_params(
    client: MlflowClient, run_id: str, step: int, metrics: Mapping[str, float], params: Mapping[str, str]
) -> None:
    """Logs the metrics and params of a run. Metrics are sent in batches of the size that MLflow accepts."""
    now, names = get_current_time_millis(), mlflow_metric_names(list(metrics))
    entities = [Metric(name, value, now, step) for name, value in zip(names, metrics.values(), strict=True)]
    for first in range(0, len(entities), MAX_METRICS):
        client.log_batch(run_id, metrics=entities[first : first + MAX_METRICS])
    client.log_batch(run_id, params=[Param(name, value) for name, value in params.items()])


def mlflow_metric_names(names: list[str]) -> list[str]:
    """Converts metric names to valid and distinct MLflow names. Class names may contain any character."""
    valid = [_valid_name(name) for name in names]
    duplicates = {key for key, count in Counter(valid).items() if count > 1}
    return [
        _with_digest(key, name) if key in duplicates and key != name else key
        for key, name in zip(valid, names, strict=True)
    ]


def _valid_name(name: str) -> str:
    characters = "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in name)
    key = "/".join("_" if part.strip(".") == "" else part for part in characters.split("/"))
    return key if len(key) <= MAX_NAME_LENGTH else _with_digest(key, name)


def _with_digest(key: str, name: str) -> str:
    suffix = f"-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return key[: MAX_NAME_LENGTH - len(suffix)] + suffix
