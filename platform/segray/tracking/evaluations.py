"""Logging of evaluations to MLflow. Each evaluation is a child run of the model's training run."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from segray.config import paths
from segray.core.errors import RegistryError
from segray.core.logging import silence_libraries
from segray.core.parsing import parse_json
from segray.tracking.client import UNAVAILABLE, error_summary
from segray.tracking.metric_names import log_metrics_and_params
from segray.tracking.registry import resolve_version
from segray.tracking.tags import EVALUATION, KIND_TAG
from segray.tracking.uploader import STATE_FILE


@dataclass(frozen=True)
class EvaluationEntry:
    """Content of an evaluation run.

    Attributes:
        name: name of the evaluation run.
        step: training step of the checkpoint.
        metrics: metric values, by name.
        params: parameters of the evaluation.
        summary: complete results in machine-readable form.
        files: files that are logged as artifacts.
    """

    name: str
    step: int
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    summary: Mapping[str, Any]
    files: tuple[Path, ...] = field(default=())


def log_evaluation(entry: EvaluationEntry, reference: str, folder: Path, uri: str) -> str | None:
    """Logs an evaluation as a child run of the model's training run.

    Returns the id of the new run, or `None` if the training run is unknown.

    Args:
        entry: content of the evaluation run.
        reference: model reference as the user passed it.
        folder: folder of the checkpoint.
        uri: URI of the MLflow store.

    Raises:
        RegistryError: the store does not respond.
    """
    silence_libraries()
    run_id = None
    try:
        parent = _training_run_id(uri, reference, folder)
        if parent is None:
            return None
        client = MlflowClient(uri, uri)
        experiment = client.get_run(parent).info.experiment_id
        tags = {MLFLOW_PARENT_RUN_ID: parent, KIND_TAG: EVALUATION}
        run_id = str(client.create_run(experiment, tags=tags, run_name=entry.name).info.run_id)
        _write(client, run_id, entry)
        client.set_terminated(run_id, "FINISHED")
    except UNAVAILABLE as error:
        if run_id is not None:
            with suppress(*UNAVAILABLE):  # the server itself may be unavailable
                client.set_terminated(run_id, "FAILED")
        message = f"the evaluation cannot be logged to MLflow at {paths.redact(uri)}: {error_summary(error)}"
        raise RegistryError(message) from error
    return run_id


def _training_run_id(uri: str, reference: str, folder: Path) -> str | None:
    if reference.startswith("models:/"):
        return str(resolve_version(MlflowClient(uri, uri), reference).run_id) or None
    if reference.startswith("runs:/"):
        return reference.removeprefix("runs:/").split("/")[0]
    path = folder.parent / STATE_FILE
    try:
        state = parse_json(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError):  # a damaged state of the upload names no run
        return None
    is_same_store = isinstance(state, dict) and state.get("uri") == paths.redact(uri)
    return str(state["run_id"]) if is_same_store and state.get("run_id") else None


def _write(client: MlflowClient, run_id: str, entry: EvaluationEntry) -> None:
    log_metrics_and_params(client, run_id, entry.step, entry.metrics, entry.params)
    client.log_dict(run_id, dict(entry.summary), "evaluation.json")
    for file in entry.files:
        client.log_artifact(run_id, str(file), "report")
