"""Model registry: registers checkpoints as versions and resolves model references to checkpoint folders."""

import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NAME

from segray.config import paths
from segray.core.errors import RegistryError
from segray.models import checkpoint
from segray.models.plugins import require_allowed_modules
from segray.tracking import model_card
from segray.tracking.client import ALREADY_EXISTS, UNAVAILABLE, all_pages, connect_mlflow, error_summary
from segray.tracking.integrity import integrity_tags, verify_package
from segray.tracking.package import ARTIFACT_PATH, build_package
from segray.tracking.references import REGISTRY_SCHEMES
from segray.tracking.tags import COMMIT_TAG, DATASET_TAG, DIGEST_TAG, FILES_TAG, LOCK_SUFFIX, RUN_TAG


def register_checkpoint(client: MlflowClient, run_id: str, folder: Path, name: str, aliases: list[str]) -> str:
    """Registers a checkpoint as a new version of `name`, with its card and tags, and returns the version number.

    Each run registers one version. Further calls return the existing version.
    """
    version = _registered_version(client, run_id, name)
    if version is None:
        artifact_path, tags = _upload_package(client, run_id, folder)
        _ensure_model(client, name)
        # One request creates the version, card and tags, so that a crash leaves no version without them.
        created = client.create_model_version(
            name,
            f"runs:/{run_id}/{artifact_path}",
            run_id,
            _version_tags(client, run_id, folder) | tags,
            description=model_card.render_card(card_data(client, run_id, folder, name)),
        )
        version = str(created.version)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version)
    return version


def _upload_package(client: MlflowClient, run_id: str, folder: Path) -> tuple[str, dict[str, str]]:
    """Uploads the files of a version, and returns their artifact path and the tags that verify them.

    Files that belong to a version already are never overwritten.
    """
    versions = all_pages(client.search_model_versions, f"run_id = '{run_id}'")
    artifact_path = f"{ARTIFACT_PATH}-{uuid.uuid4().hex[:8]}" if versions else ARTIFACT_PATH
    with tempfile.TemporaryDirectory() as temporary:
        package = build_package(folder, Path(temporary))
        tags = integrity_tags(package)
        client.log_artifacts(run_id, str(package), artifact_path)
    if artifact_path == ARTIFACT_PATH:
        client.set_tag(run_id, FILES_TAG, tags[FILES_TAG])
    return artifact_path, tags


def card_data(
    client: MlflowClient, run_id: str, folder: Path, name: str, scores: Sequence[model_card.SplitScores] = ()
) -> model_card.CardData:
    """Collects the data of a model card.

    Args:
        client: client of the MLflow store.
        run_id: id of the training run.
        folder: folder of the checkpoint.
        name: name of the registered model.
        scores: scores of further splits, in addition to the training's validation.
    """
    run, meta = client.get_run(run_id), checkpoint.load_meta(folder)
    config, classes = checkpoint.load_config(folder), checkpoint.load_classes(folder)
    datasets = [entry.dataset.name for entry in run.inputs.dataset_inputs] or [config.data.root]
    return model_card.CardData(
        model=name,
        config=config,
        classes=classes,
        meta=meta,
        run=run.data.tags.get(MLFLOW_RUN_NAME, run_id),
        dataset=str(datasets[0]),
        commit=run.data.tags.get(MLFLOW_GIT_COMMIT),
        scores=(model_card.validation_scores(meta, config, classes), *scores),
    )


def _version_tags(client: MlflowClient, run_id: str, folder: Path) -> dict[str, str]:
    run_tags = client.get_run(run_id).data.tags
    commit = run_tags.get(MLFLOW_GIT_COMMIT)
    return {
        RUN_TAG: run_tags.get(RUN_TAG, run_id),
        DATASET_TAG: checkpoint.load_meta(folder).dataset_digest,
    } | ({COMMIT_TAG: commit} if commit else {})


def _registered_version(client: MlflowClient, run_id: str, name: str) -> str | None:
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return str(versions[0].version) if versions else None


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ALREADY_EXISTS:
            raise


@contextmanager
def open_checkpoint(reference: str, tracking_uri: str) -> Iterator[Path]:
    """Context manager that returns the local checkpoint folder of a model, and removes a download at the end.

    Args:
        reference: a folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        tracking_uri: URI of the MLflow store for `models:/` and `runs:/` references.

    Raises:
        RegistryError: see `download_checkpoint`.
    """
    if not reference.startswith(REGISTRY_SCHEMES):
        yield Path(reference)
        return
    with tempfile.TemporaryDirectory(prefix="segray-model-") as temporary:
        yield download_checkpoint(reference, tracking_uri, Path(temporary))


def download_checkpoint(reference: str, tracking_uri: str, target: Path) -> Path:
    """Downloads a registered version, verifies all of its files, and returns its checkpoint folder below `target`.

    Args:
        reference: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        tracking_uri: URI of the MLflow store.
        target: existing folder for the files.

    Raises:
        RegistryError: the model, alias, version or run does not exist or has no files, the store does not respond, the
            files are not those that were registered, or the version names a plug-in that is not allowed.
        CheckpointError: the settings of the version are damaged.
    """
    subject = f"model {reference}"
    client = connect_mlflow(tracking_uri, subject)
    try:
        source, tags = _find_files(client, reference)
    except UNAVAILABLE as error:
        raise RegistryError(
            f"{subject} cannot be loaded from {paths.redact(tracking_uri)}: {error_summary(error)}"
            f"{available_hint(client, reference)}"
        ) from error
    try:
        package = mlflow.artifacts.download_artifacts(
            artifact_uri=source, tracking_uri=tracking_uri, dst_path=str(target)
        )
    except UNAVAILABLE as error:
        raise RegistryError(
            f"{subject} cannot be loaded: its files at {paths.redact(source)} are missing or cannot be read "
            f"({error_summary(error)}); choose another version{available_hint(client, reference)}"
        ) from error
    folder = verify_package(Path(package), tags, subject)
    require_allowed_modules(checkpoint.load_config(folder), subject)
    return folder


def _find_files(client: MlflowClient, reference: str) -> tuple[str, dict[str, str]]:
    """Returns the URI of the files of a reference, and the tags that verify them."""
    if reference.startswith("runs:/"):
        return reference, _run_tags(client, reference)
    version = resolve_version(client, reference)
    source = str(client.get_model_version_download_uri(version.name, version.version))
    has_digest = bool({FILES_TAG, DIGEST_TAG} & version.tags.keys())
    # A version that was created in MLflow's user interface has no tags of its own.
    return source, dict(version.tags) if has_digest or not source.startswith("runs:/") else _run_tags(client, source)


def _run_tags(client: MlflowClient, source: str) -> dict[str, str]:
    """Returns the tags that verify the files of a run: those of the run, or of a version that it registered."""
    run_id, _, artifact_path = source.removeprefix("runs:/").partition("/")
    tags = client.get_run(run_id).data.tags
    if artifact_path == ARTIFACT_PATH and FILES_TAG in tags:
        return dict(tags)
    versions = all_pages(client.search_model_versions, f"run_id = '{run_id}'")
    return next((dict(version.tags) for version in versions if version.source == source), {})


def resolve_version(client: MlflowClient, reference: str) -> ModelVersion:
    """Resolves `models:/NAME@ALIAS` or `models:/NAME/VERSION` to a model version.

    Raises:
        MlflowException: the version does not exist.
        RegistryError: the reference has neither form.
    """
    name, separator, version = _split_reference(reference)
    if separator == "@":
        return client.get_model_version_by_alias(name, version)
    if separator == "/":
        return client.get_model_version(name, version)
    raise RegistryError(
        f"model {reference} does not name a version; expected models:/NAME@ALIAS or models:/NAME/VERSION"
        f"{available_hint(client, reference)}"
    )


def _split_reference(reference: str) -> tuple[str, str, str]:
    """Returns the name, the separator and the alias or version. The last two are empty if there is no version."""
    body = reference.removeprefix("models:/")
    name, separator, version = body.rpartition("@" if "@" in body else "/")
    return (name, separator, version) if separator else (body, "", "")


def available_hint(client: MlflowClient, reference: str) -> str:
    """Returns the suffix of an error message that lists the available versions and aliases, or the models."""
    if reference.startswith("runs:/"):
        return "."
    name = _split_reference(reference)[0]
    try:
        models = {model.name: model for model in all_pages(client.search_registered_models)}
        if name not in models:
            names = [model for model in models if not model.endswith(LOCK_SUFFIX)]
            return f" (registered models: {', '.join(names) or 'none'})."
        versions = all_pages(client.search_model_versions, f"name = '{name}'")
    except UNAVAILABLE:
        return "."
    aliases = ", ".join(f"{alias} is {version}" for alias, version in sorted(models[name].aliases.items()))
    numbers = ", ".join(map(str, sorted(int(version.version) for version in versions)))
    return f" ({name} has versions {numbers or 'none'}; aliases: {aliases or 'none'})."
