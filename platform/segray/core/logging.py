"""Log levels and environment variables that silence libraries. Ray's logs remain in its session folder."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

LEVELS = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # warns that its progress bars are disabled, which is intended
    # These log tracebacks of errors that they also raise.
    "ray.data._internal.execution.streaming_executor": logging.CRITICAL,
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
    "ray.data.dataset": logging.ERROR,  # warns when a read waits briefly for a CPU
    "ray.serve": logging.WARNING,
    "ray.train": logging.WARNING,
    "ray._private.authentication": logging.ERROR,  # warns that token authentication is on
    "alembic": logging.WARNING,
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # logs a long traceback of errors that it also raises
}
VARIABLES = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # the commands show their own progress
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # prevents a network request for updates at import
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the URL may contain a password
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default retries for minutes; uploads are retried later instead
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_warned_tasks: set[str] = set()


def silence_libraries() -> None:
    """Sets the log levels, and the environment variables that are not yet set.

    Every process that uses these libraries calls this function.
    """
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)


@contextmanager
def warn_on_error(task: str) -> Iterator[None]:
    """Converts any error of an optional task, such as telemetry, to a warning, once per process.

    Args:
        task: what fails, as the start of the warning: "the usage of the GPU cannot be measured".
    """
    try:
        yield
    except Exception as error:  # an optional task must not end a run, whatever its libraries raise
        if task not in _warned_tasks:
            _warned_tasks.add(task)
            reason = f"{type(error).__name__}: {error}"
            logging.getLogger(__name__).warning("%s (%s); the run continues without it.", task, reason)
