"""The model registry: checkpoints become versions, and references become folders."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import mlflow
import requests
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NAME
from sqlalchemy.exc import SQLAlchemyError

from segray import checkpoint, places
from segray.errors import RegistryError
from segray.quiet import quieten
from segray.registry import card
from segray.registry.packing import PLACE, digest, pack, unpacked

CHALLENGER = "challenger"
LOCK = ".promotion"
"""What the name of a model's lock ends with: see segray.promotion.moves."""
RUN_TAG, DATASET_TAG, COMMIT_TAG, DIGEST_TAG = "segray.run", "segray.dataset", "segray.git", "segray.checkpoint"
UNAVAILABLE = (MlflowException, requests.RequestException, SQLAlchemyError, OSError)
MISSING = "RESOURCE_DOES_NOT_EXIST"
SERVER_ERROR = 500
WAITS_S = (0.5, 1.0, 2.0)
"""Between the attempts to reach a store at the start."""

Answer = TypeVar("Answer")


def register(client: MlflowClient, run_id: str, folder: Path, name: str, aliases: list[str]) -> str:
    """Registers a checkpoint as a new version of `name`, with its card and tags, and returns the version.

    A run registers one version: asked again, it returns the one it has.
    """
    version = _version_of(client, run_id, name)
    if version is None:
        with tempfile.TemporaryDirectory() as temporary:
            packed = pack(folder, Path(temporary))
            client.log_artifacts(run_id, str(packed), PLACE)
        _ensure_model(client, name)
        facts = facts_of(client, run_id, folder, name)
        # Card and tags go with the version: whoever dies behind this leaves no version without them.
        made = client.create_model_version(
            name, f"runs:/{run_id}/{PLACE}", run_id, _tags(client, run_id, folder), description=card.text(facts)
        )
        version = str(made.version)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version)
    return version


def facts_of(
    client: MlflowClient, run_id: str, folder: Path, name: str, scored: Sequence[card.Scored] = ()
) -> card.Facts:
    """Returns what the card of a version tells.

    Args:
        client: of the store.
        run_id: of the training run.
        folder: of the checkpoint.
        name: of the registered model.
        scored: splits it was evaluated on, beside its own validation.
    """
    run, meta = client.get_run(run_id), checkpoint.load_meta(folder)
    config, classes = checkpoint.load_config(folder), checkpoint.load_classes(folder)
    trained_on = [one.dataset.name for one in run.inputs.dataset_inputs] or [config.data.root]
    return card.Facts(
        model=name,
        config=config,
        classes=classes,
        meta=meta,
        run=run.data.tags.get(MLFLOW_RUN_NAME, run_id),
        dataset=str(trained_on[0]),
        commit=run.data.tags.get(MLFLOW_GIT_COMMIT),
        scored=(card.validated(meta, config, classes), *scored),
    )


def _tags(client: MlflowClient, run_id: str, folder: Path) -> dict[str, str]:
    run = client.get_run(run_id).data.tags
    commit = run.get(MLFLOW_GIT_COMMIT)
    return {
        RUN_TAG: run.get(RUN_TAG, run_id),
        DATASET_TAG: checkpoint.load_meta(folder).dataset_digest,
        DIGEST_TAG: digest(folder),
    } | ({COMMIT_TAG: commit} if commit else {})


def _version_of(client: MlflowClient, run_id: str, name: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return str(found[0].version) if found else None


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def fetch(reference: str, tracking_uri: str, into: Path | None = None) -> Path:
    """Returns the local checkpoint folder behind a reference.

    Args:
        reference: a folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        tracking_uri: the MLflow store that knows the last three.
        into: folder that takes the files; none leaves those that lie on this machine where they are.

    Raises:
        RegistryError: there is no such model, alias, version or run, it has no files, or the store does not answer.
    """
    if not reference.startswith(("models:/", "runs:/")):
        return Path(reference)
    client = connected(tracking_uri, f"model {reference}")
    try:
        source = _source(client, reference)
    except UNAVAILABLE as error:
        raise RegistryError(
            f"model {reference} cannot be fetched from {places.masked(tracking_uri)}: {first_line(error)}"
            f"{known(client, reference)}"
        ) from error
    try:
        target = None if into is None else str(into)
        local = mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=tracking_uri, dst_path=target)
    except UNAVAILABLE as error:
        raise RegistryError(
            f"model {reference} cannot be fetched: its files are not at {places.masked(source)}, or cannot be read "
            f"({first_line(error)}); choose another{known(client, reference)}"
        ) from error
    folder = unpacked(Path(local))
    if not (folder / checkpoint.META).exists():
        raise RegistryError(
            f"model {reference} cannot be fetched: {places.masked(source)} holds no whole checkpoint, its files were "
            f"deleted or it is no model of segray; choose another{known(client, reference)}"
        )
    return folder


def connected(tracking_uri: str, what: str, waits_s: Sequence[float] = WAITS_S) -> MlflowClient:
    """Returns a client of a store that answers; one that is away is waited for a few seconds.

    Args:
        tracking_uri: of the store.
        what: is wanted of it, for the message.
        waits_s: between the attempts.

    Raises:
        RegistryError: it does not answer.
    """
    quieten()
    check_there(tracking_uri, what)

    def answering() -> MlflowClient:
        client = MlflowClient(tracking_uri, tracking_uri)  # which opens a database, if it is one
        client.search_registered_models(max_results=1)
        return client

    try:
        return patient(answering, waits_s)
    except UNAVAILABLE as error:
        raise RegistryError(
            f"{what} cannot be fetched: MLflow at {places.masked(tracking_uri)} does not answer "
            f"({first_line(error)}); tried {len(waits_s) + 1} times; start it, or name another with --tracking.uri."
        ) from error


def patient(ask: Callable[[], Answer], waits_s: Sequence[float] = WAITS_S) -> Answer:
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


def first_line(error: Exception) -> str:
    """Returns what an error says, without the page below it, and without the password of an address in it."""
    lines = places.masked(str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def check_there(tracking_uri: str, what: str) -> None:
    """Refuses a database that is not there, of which MLflow would make an empty one.

    Raises:
        RegistryError: it is not; `what` cannot be fetched.
    """
    store = tracking_uri.removeprefix("sqlite:///")
    if store != tracking_uri and not Path(store).exists():
        raise RegistryError(f"{what} cannot be fetched: there is no MLflow store {store}.")


def _source(client: MlflowClient, reference: str) -> str:
    if reference.startswith("runs:/"):
        return reference
    version = resolve(client, reference)
    return str(client.get_model_version_download_uri(version.name, version.version))


def resolve(client: MlflowClient, reference: str) -> ModelVersion:
    """Returns the version behind `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        MlflowException: there is none.
        RegistryError: the reference has neither form.
    """
    name, mark, which = _parts(reference)
    if mark == "@":
        return client.get_model_version_by_alias(name, which)
    if mark == "/":
        return client.get_model_version(name, which)
    raise RegistryError(
        f"model {reference} names no version; expected models:/NAME@ALIAS or models:/NAME/VERSION"
        f"{known(client, reference)}"
    )


def _parts(reference: str) -> tuple[str, str, str]:
    body = reference.removeprefix("models:/")
    mark = "@" if "@" in body else "/"
    name, found, which = body.rpartition(mark)
    return (name, found, which) if found else (body, "", "")


def known(client: MlflowClient, reference: str) -> str:
    """Returns what there is instead of a reference, to stand behind a message: versions and aliases, or models."""
    if reference.startswith("runs:/"):
        return "."
    name = _parts(reference)[0]
    try:
        models = {model.name: model for model in client.search_registered_models()}
        if name not in models:
            names = [one for one in models if not one.endswith(LOCK)]
            return f" (registered there: {', '.join(names) or 'none'})."
        versions = sorted(int(one.version) for one in client.search_model_versions(f"name = '{name}'"))
    except UNAVAILABLE:
        return "."
    aliases = ", ".join(f"{alias} is {version}" for alias, version in sorted(models[name].aliases.items()))
    return f" ({name} has versions {', '.join(map(str, versions)) or 'none'}; aliases: {aliases or 'none'})."
