"""Model registry: registers checkpoints as versions and resolves model references to checkpoint folders."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NAME

from segray.config import paths
from segray.core.errors import RegistryError
from segray.models import checkpoint
from segray.tracking import model_card
from segray.tracking.client import ALREADY_EXISTS, UNAVAILABLE, all_pages, connect_mlflow, error_summary
from segray.tracking.package import ARTIFACT_PATH, build_package, package_digest, packaged_checkpoint
from segray.tracking.tags import COMMIT_TAG, DATASET_TAG, DIGEST_TAG, LOCK_SUFFIX, RUN_TAG


def register_checkpoint(client: MlflowClient, run_id: str, folder: Path, name: str, aliases: list[str]) -> str:
    """Registers a checkpoint as a new version of `name`, with its card and tags, and returns the version number.

    Each run registers one version. Further calls return the existing version.
    """
    version = _registered_version(client, run_id, name)
    if version is None:
        with tempfile.TemporaryDirectory() as temporary:
            package = build_package(folder, Path(temporary))
            client.log_artifacts(run_id, str(package), ARTIFACT_PATH)
        _ensure_model(client, name)
        # One request creates the version, card and tags, so that a crash leaves no version without them.
        created = client.create_model_version(
            name,
            f"runs:/{run_id}/{ARTIFACT_PATH}",
            run_id,
            _version_tags(client, run_id, folder),
            description=model_card.render_card(card_data(client, run_id, folder, name)),
        )
        version = str(created.version)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version)
    return version


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
        DIGEST_TAG: package_digest(folder),
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


def download_checkpoint(reference: str, tracking_uri: str, target: Path | None = None) -> Path:
    """Returns the local checkpoint folder of a model reference, and downloads it if necessary.

    Args:
        reference: a folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        tracking_uri: URI of the MLflow store for `models:/` and `runs:/` references.
        target: folder of the download. With `None`, local files stay in place.

    Raises:
        RegistryError: the model, alias, version or run does not exist or has no files, or the store does not respond.
    """
    if not reference.startswith(("models:/", "runs:/")):
        return Path(reference)
    client = connect_mlflow(tracking_uri, f"model {reference}")
    try:
        source = _source(client, reference)
    except UNAVAILABLE as error:
        raise RegistryError(
            f"model {reference} cannot be loaded from {paths.redact(tracking_uri)}: {error_summary(error)}"
            f"{available_hint(client, reference)}"
        ) from error
    try:
        folder = mlflow.artifacts.download_artifacts(
            artifact_uri=source, tracking_uri=tracking_uri, dst_path=None if target is None else str(target)
        )
    except UNAVAILABLE as error:
        raise RegistryError(
            f"model {reference} cannot be loaded: its files at {paths.redact(source)} are missing or cannot be read "
            f"({error_summary(error)}); choose another version{available_hint(client, reference)}"
        ) from error
    checkpoint_dir = packaged_checkpoint(Path(folder))
    if not (checkpoint_dir / checkpoint.META).exists():
        raise RegistryError(
            f"model {reference} cannot be loaded: {paths.redact(source)} does not contain a complete segray "
            f"checkpoint; choose another version{available_hint(client, reference)}"
        )
    return checkpoint_dir


def _source(client: MlflowClient, reference: str) -> str:
    if reference.startswith("runs:/"):
        return reference
    version = resolve_version(client, reference)
    return str(client.get_model_version_download_uri(version.name, version.version))


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
