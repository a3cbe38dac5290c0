"""Uploader: sends the records of a journal to MLflow in order, once, and without blocking the training."""

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from mlflow.entities import Dataset, DatasetInput, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from segray.config import paths
from segray.core.errors import CheckpointError, RegistryError
from segray.core.logging import silence_libraries
from segray.core.parsing import parse_json
from segray.models import checkpoint
from segray.tracking.client import UNAVAILABLE, error_summary
from segray.tracking.journal import JOURNAL, JournalReader, Record
from segray.tracking.metric_names import MAX_METRICS, mlflow_metric_names
from segray.tracking.registry import register_checkpoint
from segray.tracking.tags import RUN_TAG, TRIAL_TAG

STATE_FILE = "uploaded.json"
MAX_PARAMS = 100
MAX_VALUE = 6000

BAD_REQUEST = 400  # status for a record that the store rejects permanently
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


class RunUploader:
    """Uploads the journal of one run and resumes from the last upload.

    Repeated uploads are safe. The uploader searches the run by its key before it creates one. A repeated metric has
    the same step, value and time, and MLflow stores it once.

    Args:
        folder: folder of the run.
        uri: URI of the MLflow store. The upload state of other stores is ignored.
        log: function that prints a message for each record that the store rejects. Such records are skipped.

    Attributes:
        run_id: MLflow id of the run, or `None` before it is known.
        version: registered version of the model, or `None` before the registration.
    """

    def __init__(self, folder: Path, uri: str, log: Callable[[str], None] = print) -> None:
        silence_libraries()
        self._folder = folder
        self._uri = uri
        self._log = log
        self._offset = 0
        self.run_id: str | None = None
        self.version: str | None = None
        self._restore()

    def flush(self) -> None:
        """Uploads all records that were written since the last upload by this or another process.

        Raises:
            RegistryError: the server does not respond. The remaining records stay in the journal.
        """
        try:
            with _upload_lock(self._folder):
                self._restore()
                client = MlflowClient(self._uri, self._uri)
                reader = JournalReader(self._folder / JOURNAL, self._offset)
                for records, offset in batch_records(reader):
                    self._send_or_skip(client, records)
                    self._save(offset)
        except UNAVAILABLE as error:
            message = f"upload to MLflow at {paths.redact(self._uri)} failed: {error_summary(error)}"
            raise RegistryError(message) from error

    def _send_or_skip(self, client: MlflowClient, records: list[Record]) -> None:
        try:
            self._send(client, records)
        except FileNotFoundError as error:
            self._log(f"{error.filename} does not exist; its upload is skipped.")
        except CheckpointError as error:
            self._log(f"{error} It is not registered.")
        except MlflowException as error:
            if error.get_http_status_code() != BAD_REQUEST or records[0]["kind"] == "run":
                raise
            if len(records) > 1:
                for record in records:
                    self._send_or_skip(client, [record])
            else:
                self._log(
                    f"MLflow rejected a record of kind {records[0]['kind']}: {error_summary(error)}; it is skipped."
                )

    def _send(self, client: MlflowClient, records: list[Record]) -> None:
        record = records[0]
        if record["kind"] == "run":
            self.run_id = _find_or_create_run(client, record, self._uri, self._folder)
        elif record["kind"] == "resumed":
            client.update_run(self._require_run_id(), "RUNNING")
        elif record["kind"] == "metrics":
            metrics = [metric for record in records for metric in _metrics(record)]
            for first in range(0, len(metrics), MAX_METRICS):
                client.log_batch(self._require_run_id(), metrics=metrics[first : first + MAX_METRICS])
        elif record["kind"] == "text":
            client.log_text(self._require_run_id(), record["text"], record["name"])
        elif record["kind"] == "image":
            client.log_artifact(self._require_run_id(), self._existing_path(record["file"]), record["place"])
        elif record["kind"] == "tag":
            client.set_tag(self._require_run_id(), record["name"], record["value"])
        elif record["kind"] == "model":
            folder = Path(self._existing_path(record["folder"]))
            checkpoint.verify_checksums(folder, checkpoint.load_meta(folder))
            self.version = register_checkpoint(
                client, self._require_run_id(), folder, record["name"], record["aliases"]
            )
        elif record["kind"] == "end":
            client.set_terminated(self._require_run_id(), record["status"], record["time_ms"])

    def _existing_path(self, name: str) -> str:
        """Returns the path of a file in the current folder of the run.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        path = self._folder / name
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return str(path)

    def _require_run_id(self) -> str:
        if self.run_id is None:
            raise RegistryError(f"{self._folder / JOURNAL} does not start with a record of kind run.")
        return self.run_id

    def _restore(self) -> None:
        """Restores the state of the last upload to the same store. Sending a record twice is harmless."""
        file = self._folder / STATE_FILE
        if not file.is_file():  # reading a pipe may never end
            return
        with suppress(OSError, ValueError, KeyError, TypeError):
            state = parse_json(file.read_bytes())
            if state["uri"] == paths.redact(self._uri):
                self._offset, self.run_id, self.version = state["offset"], state["run_id"], state["version"]

    def _save(self, offset: int) -> None:
        self._offset = offset
        uri = paths.redact(self._uri)
        state = {"uri": uri, "offset": offset, "run_id": self.run_id, "version": self.version}
        temporary = self._folder / f"{STATE_FILE}.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(self._folder / STATE_FILE)


@contextmanager
def _upload_lock(folder: Path) -> Iterator[None]:
    """Holds the upload lock of the run. Concurrent uploads would create two MLflow runs."""
    with (folder / f"{STATE_FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _format_value(value: object) -> str:
    """Formats a configuration value like a command-line option."""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _find_or_create_run(client: MlflowClient, record: Record, uri: str, folder: Path) -> str:
    experiment = _find_or_create_experiment(client, record["experiment"], uri, folder)
    runs = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{record['key']}'", max_results=1)
    tags = {**record["tags"], RUN_TAG: record["key"]} | _parent_tags(client, experiment, record)
    run = runs[0] if runs else client.create_run(experiment, record["time_ms"], tags, record["name"])
    run_id = str(run.info.run_id)
    params = [Param(key, _format_value(value)[:MAX_VALUE]) for key, value in record["params"].items()]
    # An existing run also receives its params, because an earlier upload may be incomplete.
    for first in range(0, len(params), MAX_PARAMS):
        client.log_batch(run_id, params=params[first : first + MAX_PARAMS])
    dataset = record["dataset"]
    entity = Dataset(dataset["name"], dataset["digest"], "local", json.dumps({"uri": dataset["root"]}))
    client.log_inputs(run_id, [DatasetInput(entity, [])])
    return run_id


def _parent_tags(client: MlflowClient, experiment: str, record: Record) -> dict[str, str]:
    """Returns the tags that make the run of a trial a child of the sweep's run.

    Raises:
        RegistryError: the run of the sweep does not exist yet.
    """
    if "parent" not in record:
        return {}
    parents = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{record['parent']}'", max_results=1)
    if not parents:
        raise RegistryError(f"the sweep of {record['name']} has no MLflow run yet.")
    return {MLFLOW_PARENT_RUN_ID: str(parents[0].info.run_id), TRIAL_TAG: str(record["number"])}


def _find_or_create_experiment(client: MlflowClient, name: str, uri: str, folder: Path) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    return str(client.create_experiment(name, _artifact_location(uri, folder)))


def _artifact_location(uri: str, folder: Path) -> str | None:
    """Returns the artifact folder of an experiment, or `None` for a tracking server, which has its own.

    With a database store, MLflow would otherwise use the working directory of the process that creates the experiment.
    """
    scheme, _, path = uri.partition("://")
    database = scheme.partition("+")[0]
    if database not in DATABASES:
        return None
    parent = Path(path.removeprefix("/")).absolute().parent if database == "sqlite" else folder.parent
    return f"{parent}/mlartifacts"


def batch_records(reader: JournalReader) -> Iterator[tuple[list[Record], int]]:
    """Yields batches of new records, each with the journal offset after the batch.

    Consecutive metrics records form batches of the size that MLflow accepts. Other records are yielded one at a time.
    """
    batch: list[Record] = []
    num_values, offset = 0, reader.offset
    for record in reader.read():
        is_metrics = record["kind"] == "metrics"
        num_values += len(record["values"]) if is_metrics else 0
        if batch and (not is_metrics or num_values > MAX_METRICS):
            yield batch, offset
            batch, num_values = [], len(record["values"]) if is_metrics else 0
        offset = reader.offset
        if is_metrics:
            batch.append(record)
        else:
            yield [record], offset
    if batch:
        yield batch, offset


def _metrics(record: Record) -> list[Metric]:
    keys = mlflow_metric_names(list(record["values"]))
    values = record["values"].values()
    return [Metric(key, value, record["time_ms"], record["step"]) for key, value in zip(keys, values, strict=True)]


class Flushable(Protocol):
    """Uploader that sends new records on each call of `flush`."""

    def flush(self) -> None:
        """Uploads all records that were written since the last call."""


class UploadThread(threading.Thread):
    """Background thread that uploads a journal every few seconds. Reports only the first upload failure."""

    def __init__(self, uploader: Flushable, log: Callable[[str], None], interval_s: float = 2.0) -> None:
        super().__init__(daemon=True, name="segray-upload")
        self._uploader, self._log, self._interval_s = uploader, log, interval_s
        self._stopped = threading.Event()
        self._has_reported = False

    def run(self) -> None:
        """Uploads periodically until the thread is stopped."""
        while not self._stopped.wait(self._interval_s):
            self._flush()

    def _flush(self) -> bool:
        try:
            self._uploader.flush()
        except Exception as error:  # a tracking failure must not stop the training
            if not self._has_reported:
                self._has_reported = True
                is_known = isinstance(error, RegistryError)
                message = str(error) if is_known else f"MLflow: {type(error).__name__}: {error_summary(error)}"
                self._log(f"{message}; training continues, and its records stay in the journal.")
            return False
        return True

    def close(self) -> bool:
        """Stops the thread, uploads the remaining records, and returns `True` if the upload succeeded."""
        self._stopped.set()
        self.join()
        return self._flush()
