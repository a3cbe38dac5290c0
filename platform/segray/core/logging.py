"""Keeps libraries from talking over our own lines; their logs stay in Ray's session folder."""

import logging
import os

LEVELS = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # warns that its bars are off, which we asked for
    # Their tracebacks: what they raise says it all.
    "ray.data._internal.execution.streaming_executor": logging.CRITICAL,
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
    "ray.data.dataset": logging.ERROR,  # warns when a read has to wait a moment for a CPU
    "ray.serve": logging.WARNING,
    "ray.train": logging.WARNING,
    "ray._private.authentication": logging.ERROR,  # warns that token authentication is on
    "alembic": logging.WARNING,
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # a traceback of a hundred lines, of what it raises too
}
VARIABLES = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # ours is on the terminal
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # a worker must not ask the network for news at import
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password that stands in it
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # its own patience is minutes; ours is spent by trying again later
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def silence_libraries() -> None:
    """Sets levels, and variables that are not set yet, in every process that uses these libraries."""
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
