"""Uploader: sends the records of a journal to MLflow in order, once, and without blocking the training."""

import errno
import fcntl
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from mlflow.entities import Dataset, DatasetInput, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from segray.config import paths
from segray.core.errors import RegistryError
from segray.core.logging import silence_libraries
from segray.tracking.client import UNAVAILABLE
from segray.tracking.journal import JOURNAL, JournalReader, Record
from segray.tracking.registry import RUN_TAG, register_checkpoint

STATE_FILE = "uploaded.json"
KEY_TAG = RUN_TAG
NUMBER_TAG = "segray.trial"
MAX_METRICS, MAX_PARAMS = 1000, 100
MAX_VALUE = 6000

BAD_REQUEST = 400  # status for a record that the store rejects permanently
MAX_NAME_LENGTH = 250
AUTOFLUSH = "(raised as a result of Query-invoked autoflush"  # SQLAlchemy puts this line before the reason
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


class RunUploader:
    """Uploads the journal of one run and resumes from the last upload.

    Repeated uploads are safe. The uploader searches the run by its key before it creates one. A repeated metric has
    the same step, value and time, and MLflow stores it once.

    Args:
        folder: folder of the run.
        uri: URI of the MLflow store. The upload state of other stores is ignored.
        say: function that prints a message for each record that the store rejects. Such records are skipped.

    Attributes:
        run_id: MLflow id of the run, or `None` before it is known.
        version: registered version of the model, or `None` before the registration.
    """

    def __init__(self, folder: Path, uri: str, say: Callable[[str], None] = print) -> None:
        silence_libraries()
        self._folder = folder
        self._uri = uri
        self._say = say
        self._offset = 0
        self.run_id: str | None = None
        self.version: str | None = None
        self._restore()

    def flush(self) -> None:
        """Uploads all records that were written since the last upload by this or another process.

        Raises:
            RegistryError: the server does not answer. The remaining records stay in the journal.
        """
        try:
            with _only_uploader(self._folder):
                self._restore()
                client = MlflowClient(self._uri, self._uri)
                tail = JournalReader(self._folder / JOURNAL, self._offset)
                for records, offset in batch_records(tail):
                    self._send_or_leave_out(client, records)
                    self._save(offset)
        except UNAVAILABLE as error:
            raise RegistryError(
                f"MLflow at {paths.redact(self._uri)} does not take records: {_reason(error)}"
            ) from error

    def _send_or_leave_out(self, client: MlflowClient, records: list[Record]) -> None:
        try:
            self._send(client, records)
        except FileNotFoundError as error:
            self._say(f"{error.filename} is not there; MLflow goes without it.")
        except MlflowException as error:
            if error.get_http_status_code() != BAD_REQUEST or records[0]["kind"] == "run":
                raise
            if len(records) > 1:
                for record in records:
                    self._send_or_leave_out(client, [record])
            else:
                self._say(f"MLflow refuses a record of {records[0]['kind']}: {_reason(error)}; it goes without it.")

    def _send(self, client: MlflowClient, records: list[Record]) -> None:
        record = records[0]
        if record["kind"] == "run":
            self.run_id = _find_or_create_run(client, record, self._uri, self._folder)
        elif record["kind"] == "resumed":
            client.update_run(self._run(), "RUNNING")
        elif record["kind"] == "metrics":
            metrics = [metric for record in records for metric in _metrics(record)]
            for first in range(0, len(metrics), MAX_METRICS):
                client.log_batch(self._run(), metrics=metrics[first : first + MAX_METRICS])
        elif record["kind"] == "text":
            client.log_text(self._run(), record["text"], record["name"])
        elif record["kind"] == "image":
            client.log_artifact(self._run(), self._held(record["file"]), record["place"])
        elif record["kind"] == "tag":
            client.set_tag(self._run(), record["name"], record["value"])
        elif record["kind"] == "model":
            self.version = register_checkpoint(
                client, self._run(), Path(self._held(record["folder"])), record["name"], record["aliases"]
            )
        elif record["kind"] == "end":
            client.set_terminated(self._run(), record["status"], record["time_ms"])

    def _held(self, name: str) -> str:
        """Returns the path of a file in the current folder of the run.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        path = self._folder / name
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return str(path)

    def _run(self) -> str:
        if self.run_id is None:
            raise RegistryError(f"{self._folder / JOURNAL} does not begin with the record of its run.")
        return self.run_id

    def _restore(self) -> None:
        """Restores the state of the last upload to the same store. Sending a record twice is harmless."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads((self._folder / STATE_FILE).read_text())
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
def _only_uploader(folder: Path) -> Iterator[None]:
    """Holds the upload lock of the run. Concurrent uploads would create two MLflow runs."""
    with (folder / f"{STATE_FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _reason(error: Exception) -> str:
    lines = [line for line in paths.redact(str(error)).strip().splitlines() if not line.startswith(AUTOFLUSH)]
    return lines[0][:200] if lines else type(error).__name__


def _spelt(value: object) -> str:
    """Formats a configuration value like a command-line option."""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _find_or_create_run(client: MlflowClient, record: Record, uri: str, folder: Path) -> str:
    experiment = _experiment(client, record["experiment"], uri, folder)
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{record['key']}'", max_results=1)
    tags = {**record["tags"], KEY_TAG: record["key"]} | _below(client, experiment, record)
    run = found[0] if found else client.create_run(experiment, record["time_ms"], tags, record["name"])
    run_id = str(run.info.run_id)
    params = [Param(key, _spelt(value)[:MAX_VALUE]) for key, value in record["params"].items()]
    # An existing run also receives its params, because an earlier upload may be incomplete.
    for first in range(0, len(params), MAX_PARAMS):
        client.log_batch(run_id, params=params[first : first + MAX_PARAMS])
    dataset = record["dataset"]
    entity = Dataset(dataset["name"], dataset["digest"], "local", json.dumps({"uri": dataset["root"]}))
    client.log_inputs(run_id, [DatasetInput(entity, [])])
    return run_id


def _below(client: MlflowClient, experiment: str, record: Record) -> dict[str, str]:
    """Returns the tags that make the run of a trial a child of the sweep's run.

    Raises:
        RegistryError: the run of the sweep does not exist yet.
    """
    if "parent" not in record:
        return {}
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{record['parent']}'", max_results=1)
    if not found:
        raise RegistryError(f"the run of the sweep that {record['name']} is part of is not there yet.")
    return {MLFLOW_PARENT_RUN_ID: str(found[0].info.run_id), NUMBER_TAG: str(record["number"])}


def _experiment(client: MlflowClient, name: str, uri: str, folder: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, _artifacts(uri, folder)))


def _artifacts(uri: str, folder: Path) -> str | None:
    """Returns the artifact folder of an experiment, or `None` for a tracking server, which has its own.

    With a database store, MLflow would otherwise use the working directory of the process that creates the experiment.
    """
    scheme, _, place = uri.partition("://")
    kind = scheme.partition("+")[0]
    if kind not in DATABASES:
        return None
    beside = Path(place.removeprefix("/")).absolute().parent if kind == "sqlite" else folder.parent
    return f"{beside}/mlartifacts"


def batch_records(tail: JournalReader) -> Iterator[tuple[list[Record], int]]:
    """Yields batches of new records, each with the journal offset after the batch.

    Consecutive metrics records form batches of the size that MLflow accepts. Other records are yielded one at a time.
    """
    waiting: list[Record] = []
    behind = tail.offset
    for record in tail.read():
        is_metrics = record["kind"] == "metrics"
        many = sum(len(one["values"]) for one in waiting) + (len(record["values"]) if is_metrics else 0)
        if waiting and (not is_metrics or many > MAX_METRICS):
            yield waiting, behind
            waiting = []
        behind = tail.offset
        if is_metrics:
            waiting.append(record)
        else:
            yield [record], behind
    if waiting:
        yield waiting, behind


def _metrics(record: Record) -> list[Metric]:
    keys = mlflow_metric_names(list(record["values"]))
    values = record["values"].values()
    return [Metric(key, value, record["time_ms"], record["step"]) for key, value in zip(keys, values, strict=True)]


def mlflow_metric_names(names: list[str]) -> list[str]:
    """Converts metric names to valid and distinct MLflow names. Class names may contain any character."""
    keys = [_key(name) for name in names]
    twice = {key for key, count in Counter(keys).items() if count > 1}
    return [_marked(key, name) if key in twice and key != name else key for key, name in zip(keys, names, strict=True)]


def _key(name: str) -> str:
    letters = "".join(letter if letter.isalnum() or letter in "_-. :/" else "_" for letter in name)
    key = "/".join("_" if part.strip(".") == "" else part for part in letters.split("/"))
    return key if len(key) <= MAX_NAME_LENGTH else _marked(key, name)


def _marked(key: str, name: str) -> str:
    mark = f"-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return key[: MAX_NAME_LENGTH - len(mark)] + mark


class Flushable(Protocol):
    """Uploader that sends new records on each call of `flush`."""

    def flush(self) -> None:
        """Uploads all records that were written since the last call."""


class UploadThread(threading.Thread):
    """Background thread that uploads a journal every few seconds. Reports only the first upload failure."""

    def __init__(self, upload: "Flushable", say: Callable[[str], None], every_s: float = 2.0) -> None:
        super().__init__(daemon=True, name="segray-upload")
        self._upload, self._say, self._every_s = upload, say, every_s
        self._stopped = threading.Event()
        self._complained = False

    def run(self) -> None:
        """Uploads periodically until the thread is stopped."""
        while not self._stopped.wait(self._every_s):
            self._try()

    def _try(self) -> bool:
        try:
            self._upload.flush()
        except Exception as error:  # a tracking failure must not stop the training
            if not self._complained:
                self._complained = True
                told = (
                    str(error)
                    if isinstance(error, RegistryError)
                    else f"MLflow: {type(error).__name__}: {_reason(error)}"
                )
                self._say(f"{told}; training goes on and keeps its records.")
            return False
        return True

    def close(self) -> bool:
        """Stops the thread, uploads the remaining records, and returns `True` if the upload succeeded."""
        self._stopped.set()
        self.join()
        return self._try()
