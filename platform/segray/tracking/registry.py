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
from segray.tracking.client import UNAVAILABLE, connect_mlflow, error_summary
from segray.tracking.package import ARTIFACT_PATH, build_package, package_digest, packaged_checkpoint

CHALLENGER = "challenger"
LOCK = ".promotion"
"""Suffix of the lock name of a model. See segray.promotion.aliases."""
RUN_TAG, DATASET_TAG, COMMIT_TAG, DIGEST_TAG = "segray.run", "segray.dataset", "segray.git", "segray.checkpoint"

NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"


def register_checkpoint(client: MlflowClient, run_id: str, folder: Path, name: str, aliases: list[str]) -> str:
    """Registers a checkpoint as a new version of `name`, with its card and tags, and returns the version number.

    Each run registers one version. Further calls return the existing version.
    """
    version = _version_of(client, run_id, name)
    if version is None:
        with tempfile.TemporaryDirectory() as temporary:
            packed = build_package(folder, Path(temporary))
            client.log_artifacts(run_id, str(packed), ARTIFACT_PATH)
        _ensure_model(client, name)
        facts = card_data(client, run_id, folder, name)
        # One request creates the version, card and tags, so that a crash leaves no version without them.
        made = client.create_model_version(
            name,
            f"runs:/{run_id}/{ARTIFACT_PATH}",
            run_id,
            _tags(client, run_id, folder),
            description=model_card.render_card(facts),
        )
        version = str(made.version)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version)
    return version


def card_data(
    client: MlflowClient, run_id: str, folder: Path, name: str, scored: Sequence[model_card.SplitScores] = ()
) -> model_card.CardData:
    """Collects the data of a model card.

    Args:
        client: client of the MLflow store.
        run_id: id of the training run.
        folder: folder of the checkpoint.
        name: name of the registered model.
        scored: scores of further splits, in addition to the training's validation.
    """
    run, meta = client.get_run(run_id), checkpoint.load_meta(folder)
    config, classes = checkpoint.load_config(folder), checkpoint.load_classes(folder)
    trained_on = [one.dataset.name for one in run.inputs.dataset_inputs] or [config.data.root]
    return model_card.CardData(
        model=name,
        config=config,
        classes=classes,
        meta=meta,
        run=run.data.tags.get(MLFLOW_RUN_NAME, run_id),
        dataset=str(trained_on[0]),
        commit=run.data.tags.get(MLFLOW_GIT_COMMIT),
        scored=(model_card.validation_scores(meta, config, classes), *scored),
    )


def _tags(client: MlflowClient, run_id: str, folder: Path) -> dict[str, str]:
    run = client.get_run(run_id).data.tags
    commit = run.get(MLFLOW_GIT_COMMIT)
    return {
        RUN_TAG: run.get(RUN_TAG, run_id),
        DATASET_TAG: checkpoint.load_meta(folder).dataset_digest,
        DIGEST_TAG: package_digest(folder),
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


def download_checkpoint(reference: str, tracking_uri: str, into: Path | None = None) -> Path:
    """Returns the local checkpoint folder of a model reference, and downloads it if necessary.

    Args:
        reference: a folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        tracking_uri: URI of the MLflow store for `models:/` and `runs:/` references.
        into: target folder of the download. With `None`, local files stay in place.

    Raises:
        RegistryError: the model, alias, version or run does not exist or has no files, or the store does not answer.
    """
    if not reference.startswith(("models:/", "runs:/")):
        return Path(reference)
    client = connect_mlflow(tracking_uri, f"model {reference}")
    try:
        source = _source(client, reference)
    except UNAVAILABLE as error:
        raise RegistryError(
            f"model {reference} cannot be fetched from {paths.redact(tracking_uri)}: {error_summary(error)}"
            f"{available_hint(client, reference)}"
        ) from error
    try:
        target = None if into is None else str(into)
        local = mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=tracking_uri, dst_path=target)
    except UNAVAILABLE as error:
        raise RegistryError(
            f"model {reference} cannot be fetched: its files are not at {paths.redact(source)}, or cannot be read "
            f"({error_summary(error)}); choose another{available_hint(client, reference)}"
        ) from error
    folder = packaged_checkpoint(Path(local))
    if not (folder / checkpoint.META).exists():
        raise RegistryError(
            f"model {reference} cannot be fetched: {paths.redact(source)} holds no whole checkpoint, its files were "
            f"deleted or it is no model of segray; choose another{available_hint(client, reference)}"
        )
    return folder


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
    name, mark, which = _parts(reference)
    if mark == "@":
        return client.get_model_version_by_alias(name, which)
    if mark == "/":
        return client.get_model_version(name, which)
    raise RegistryError(
        f"model {reference} names no version; expected models:/NAME@ALIAS or models:/NAME/VERSION"
        f"{available_hint(client, reference)}"
    )


def _parts(reference: str) -> tuple[str, str, str]:
    body = reference.removeprefix("models:/")
    mark = "@" if "@" in body else "/"
    name, found, which = body.rpartition(mark)
    return (name, found, which) if found else (body, "", "")


def available_hint(client: MlflowClient, reference: str) -> str:
    """Returns the suffix of an error message that lists the available versions and aliases, or the models."""
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
