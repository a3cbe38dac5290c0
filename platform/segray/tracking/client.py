"""Connection to an MLflow store, with retries and readable errors."""

import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from segray.config import paths
from segray.core.errors import RegistryError
from segray.core.logging import silence_libraries

UNAVAILABLE = (MlflowException, requests.RequestException, SQLAlchemyError, OSError)

NOT_FOUND, ALREADY_EXISTS = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"
"""Error codes of MlflowException."""
SERVER_ERROR = 500
MAX_SUMMARY_LENGTH = 300
AUTOFLUSH = "(raised as a result of Query-invoked autoflush"  # SQLAlchemy puts this line before the reason
RETRY_DELAYS_S = (0.5, 1.0, 2.0)
"""Delays in seconds between the attempts to reach a store."""

Response = TypeVar("Response")


def connect_mlflow(tracking_uri: str, subject: str, delays_s: Sequence[float] = RETRY_DELAYS_S) -> MlflowClient:
    """Connects to an MLflow store and returns the client. Retries while the store does not respond.

    Args:
        tracking_uri: URI of the store.
        subject: name of the requested object, for the error message.
        delays_s: delays in seconds between the attempts.

    Raises:
        RegistryError: the store does not respond.
    """
    silence_libraries()
    require_store(tracking_uri, subject)

    def connect() -> MlflowClient:
        client = MlflowClient(tracking_uri, tracking_uri)  # this opens the connection if the store is a database
        client.search_registered_models(max_results=1)
        return client

    try:
        return with_retries(connect, delays_s)
    except UNAVAILABLE as error:
        if isinstance(error, MlflowException) and error.get_http_status_code() == HTTPStatus.UNAUTHORIZED:
            raise RegistryError(
                f"{subject} cannot be loaded: MLflow at {paths.redact(tracking_uri)} requires a user name and a "
                "password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            ) from error
        raise RegistryError(
            f"{subject} cannot be loaded: MLflow at {paths.redact(tracking_uri)} does not respond "
            f"after {len(delays_s) + 1} attempts ({error_summary(error)}); start MLflow, or choose another store with "
            "--tracking.uri."
        ) from error


def with_retries(request: Callable[[], Response], delays_s: Sequence[float] = RETRY_DELAYS_S) -> Response:
    """Calls `request` and returns its result. Retries while the store is unavailable.

    Raises:
        MlflowException: the store rejects the request, or all attempts failed.
        RequestException: all attempts failed.
        SQLAlchemyError: all attempts failed.
        OSError: all attempts failed.
    """
    for delay_s in delays_s:
        try:
            return request()
        except UNAVAILABLE as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() < SERVER_ERROR:
                raise
            time.sleep(delay_s)
    return request()


def all_pages(search: Callable[..., Any], *args: Any) -> list[Any]:
    """Returns the results of all pages of a search, such as `client.search_runs`.

    Args:
        search: search method of a client.
        args: arguments of the method.
    """
    results, token = list[Any](), None
    while True:
        page = search(*args, page_token=token)
        results.extend(page)
        token = page.token
        if not token:
            return results


def error_summary(error: Exception) -> str:
    """Returns the first line of an error's message, at most 300 characters, with passwords in URIs redacted."""
    message = paths.redact(str(error))  # before it is cut, because a cut URI would not be recognised
    lines = [line for line in message.strip().splitlines() if not line.startswith(AUTOFLUSH)]
    return lines[0][:MAX_SUMMARY_LENGTH] if lines else type(error).__name__


def require_store(tracking_uri: str, subject: str) -> None:
    """Checks that a SQLite store exists, because MLflow would create an empty database.

    Args:
        tracking_uri: URI of the store.
        subject: name of the requested object, for the error message.

    Raises:
        RegistryError: the database file does not exist.
    """
    store = tracking_uri.removeprefix("sqlite:///")
    if store != tracking_uri and not Path(store).exists():
        raise RegistryError(f"{subject} cannot be loaded: MLflow store {store} does not exist.")
