"""The model registry: checkpoints become versions, and references become folders."""

import shutil
import tempfile
import warnings
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema

from segray import checkpoint, places
from segray.errors import RegistryError
from segray.quiet import quieten

CHALLENGER = "challenger"
PLACE = "model"
LOADER = Path(__file__).with_name("loader.py")
# What a registered model consists of; the optimiser's state stays with the run.
PARTS = (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.CLASSES, checkpoint.META)
SIGNATURE = ModelSignature(inputs=Schema([ColSpec("binary", "image")]), outputs=Schema([ColSpec("binary", "mask")]))


def register(client: MlflowClient, run_id: str, folder: Path, name: str, aliases: list[str]) -> str:
    """Registers a checkpoint as a new version of `name` and returns the version.

    A run registers one version: asked again, it returns the one it has.
    """
    version = _version_of(client, run_id, name)
    if version is None:
        with tempfile.TemporaryDirectory() as temporary:
            packed = _pack(folder, Path(temporary))
            client.log_artifacts(run_id, str(packed), PLACE)
        _ensure_model(client, name)
        made = client.create_model_version(name, f"runs:/{run_id}/{PLACE}", run_id)
        version = str(made.version)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version)
    return version


def _version_of(client: MlflowClient, run_id: str, name: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return str(found[0].version) if found else None


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _pack(folder: Path, temporary: Path) -> Path:
    """Returns an MLflow model folder, loadable without a pickle, made of a checkpoint."""
    staged = temporary / "checkpoint"
    staged.mkdir()
    for part in PARTS:
        shutil.copy(folder / part, staged / part)
    packed = temporary / PLACE
    with warnings.catch_warnings():
        # An example would be an image of ours in every version; the signature says as much.
        warnings.filterwarnings("ignore", ".*input example.*")
        mlflow.pyfunc.save_model(
            packed,
            python_model=str(LOADER),
            artifacts={"checkpoint": str(staged)},
            signature=SIGNATURE,
            pip_requirements=[f"{name}=={version}" for name, version in checkpoint.versions().items()],
        )
    return packed


def fetch(reference: str, tracking_uri: str) -> Path:
    """Returns the local checkpoint folder behind a reference.

    Args:
        reference: a folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        tracking_uri: the MLflow store that knows the last three.

    Raises:
        RegistryError: there is no such model, alias, version or run, or the store does not answer.
    """
    if not reference.startswith(("models:/", "runs:/")):
        return Path(reference)
    quieten()
    check_there(tracking_uri, f"model {reference}")
    client = MlflowClient(tracking_uri, tracking_uri)
    try:
        source = _source(client, reference)
        local = mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=tracking_uri)
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"model {reference} cannot be fetched from {places.masked(tracking_uri)}: {error}{_known(client)}"
        ) from error
    return Path(local) / "artifacts" / "checkpoint"


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
    body = reference.removeprefix("models:/")
    if "@" in body:
        name, alias = body.rsplit("@", 1)
        return client.get_model_version_by_alias(name, alias)
    if "/" in body:
        name, version = body.rsplit("/", 1)
        return client.get_model_version(name, version)
    raise RegistryError(f"model {reference} names no version; expected models:/NAME@ALIAS or models:/NAME/VERSION.")


def _known(client: MlflowClient) -> str:
    try:
        names = [model.name for model in client.search_registered_models()]
    except (MlflowException, OSError):
        return ""
    return f" (registered there: {', '.join(names) or 'none'})"
