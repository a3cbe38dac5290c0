"""Connection to an MLflow store, with retries and readable errors."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from segray.config import paths
from segray.core.errors import RegistryError
from segray.core.logging import silence_libraries

UNAVAILABLE = (MlflowException, requests.RequestException, SQLAlchemyError, OSError)

SERVER_ERROR = 500
RETRY_DELAYS_S = (0.5, 1.0, 2.0)
"""Delays in seconds between the attempts to reach a store."""

Answer = TypeVar("Answer")


def connect_mlflow(tracking_uri: str, what: str, waits_s: Sequence[float] = RETRY_DELAYS_S) -> MlflowClient:
    """Connects to an MLflow store and returns the client. Retries while the store does not answer.

    Args:
        tracking_uri: URI of the store.
        what: name of the requested object, for the error message.
        waits_s: delays in seconds between the attempts.

    Raises:
        RegistryError: the store does not answer.
    """
    silence_libraries()
    require_store(tracking_uri, what)

    def answering() -> MlflowClient:
        client = MlflowClient(tracking_uri, tracking_uri)  # this opens the connection if the store is a database
        client.search_registered_models(max_results=1)
        return client

    try:
        return with_retries(answering, waits_s)
    except UNAVAILABLE as error:
        raise RegistryError(
            f"{what} cannot be fetched: MLflow at {paths.redact(tracking_uri)} does not answer "
            f"({error_summary(error)}); tried {len(waits_s) + 1} times; start it, or name another with --tracking.uri."
        ) from error


def with_retries(ask: Callable[[], Answer], waits_s: Sequence[float] = RETRY_DELAYS_S) -> Answer:
    """Calls `ask` and returns its result. Retries while the store is unavailable.

    Raises:
        MlflowException: the store rejects the request, or all attempts failed.
        RequestException: all attempts failed.
        SQLAlchemyError: all attempts failed.
        OSError: all attempts failed.
    """
    for wait_s in waits_s:
        try:
            return ask()
        except UNAVAILABLE as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() < SERVER_ERROR:
                raise
            time.sleep(wait_s)
    return ask()


def error_summary(error: Exception) -> str:
    """Returns the first line of an error message, at most 300 characters, with passwords in URIs redacted."""
    lines = paths.redact(str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def require_store(tracking_uri: str, what: str) -> None:
    """Checks that a SQLite store exists, because MLflow would create an empty database.

    Args:
        tracking_uri: URI of the store.
        what: name of the requested object, for the error message.

    Raises:
        RegistryError: the database file does not exist.
    """
    store = tracking_uri.removeprefix("sqlite:///")
    if store != tracking_uri and not Path(store).exists():
        raise RegistryError(f"{what} cannot be fetched: there is no MLflow store {store}.")
