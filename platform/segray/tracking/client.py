"""The model registry: checkpoints become versions, and references become folders."""

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
"""Between the attempts to reach a store at the start."""

Answer = TypeVar("Answer")


def connect_mlflow(tracking_uri: str, what: str, waits_s: Sequence[float] = RETRY_DELAYS_S) -> MlflowClient:
    """Returns a client of a store that answers; one that is away is waited for a few seconds.

    Args:
        tracking_uri: of the store.
        what: is wanted of it, for the message.
        waits_s: between the attempts.

    Raises:
        RegistryError: it does not answer.
    """
    silence_libraries()
    require_store(tracking_uri, what)

    def answering() -> MlflowClient:
        client = MlflowClient(tracking_uri, tracking_uri)  # which opens a database, if it is one
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
    """Returns what a store answers, asked again where it is away.

    Raises:
        MlflowException, RequestException, SQLAlchemyError, OSError: it was away each time, or says no.
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
    """Returns what an error says, without the page below it, and without the password of an address in it."""
    lines = paths.redact(str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def require_store(tracking_uri: str, what: str) -> None:
    """Refuses a database that is not there, of which MLflow would make an empty one.

    Raises:
        RegistryError: it is not; `what` cannot be fetched.
    """
    store = tracking_uri.removeprefix("sqlite:///")
    if store != tracking_uri and not Path(store).exists():
        raise RegistryError(f"{what} cannot be fetched: there is no MLflow store {store}.")
