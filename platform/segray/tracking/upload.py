"""From the journal to MLflow: in order, once, and without anybody waiting for it."""

import fcntl
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from mlflow.entities import Dataset, DatasetInput, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from segray import registry
from segray.errors import RegistryError
from segray.quiet import quieten
from segray.tracking.journal import JOURNAL, Record, Tail

STATE = "uploaded.json"
KEY_TAG = "segray.run"
MOST_METRICS, MOST_PARAMS = 1000, 100
MOST_VALUE = 6000

UNAVAILABLE = (MlflowException, requests.RequestException, SQLAlchemyError, OSError)


class Upload:
    """Uploads the journal of one run, from where it stopped the last time.

    Safe to repeat: the run is found by its key before one is made, and a metric that is sent again has the same
    step, value and time, which MLflow keeps once.

    Attributes:
        run_id: MLflow's id of the run, once it is known.
        version: version the model was registered as, once it was.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        quieten()
        self._folder = folder
        self._uri = uri
        self._offset = 0
        self.run_id: str | None = None
        self.version: str | None = None
        self._restore()

    def drain(self) -> None:
        """Uploads what has come since the last call, or since another process uploaded.

        Raises:
            RegistryError: the server does not answer or refuses; what is left stays in the journal.
        """
        try:
            with _only_uploader(self._folder):
                self._restore()
                client = MlflowClient(self._uri, self._uri)
                tail = Tail(self._folder / JOURNAL, self._offset)
                for records, offset in batched(tail):
                    self._send(client, records)
                    self._save(offset)
        except UNAVAILABLE as error:
            raise RegistryError(f"MLflow at {self._uri} does not take records: {_reason(error)}") from error

    def _send(self, client: MlflowClient, records: list[Record]) -> None:
        record = records[0]
        if record["kind"] == "run":
            self.run_id = _find_or_create_run(client, record, self._uri)
        elif record["kind"] == "resumed":
            client.update_run(self._run(), "RUNNING")
        elif record["kind"] == "metrics":
            metrics = [metric for record in records for metric in _metrics(record)]
            for first in range(0, len(metrics), MOST_METRICS):
                client.log_batch(self._run(), metrics=metrics[first : first + MOST_METRICS])
        elif record["kind"] == "text":
            client.log_text(self._run(), record["text"], record["name"])
        elif record["kind"] == "image":
            client.log_artifact(self._run(), record["file"], record["place"])
        elif record["kind"] == "model":
            self.version = registry.register(
                client, self._run(), Path(record["folder"]), record["name"], record["aliases"]
            )
        elif record["kind"] == "end":
            client.set_terminated(self._run(), record["status"], record["time_ms"])

    def _run(self) -> str:
        assert self.run_id is not None, "a journal starts with the record of its run"
        return self.run_id

    def _restore(self) -> None:
        file = self._folder / STATE
        if file.exists():
            state = json.loads(file.read_text())
            self._offset, self.run_id, self.version = state["offset"], state["run_id"], state["version"]

    def _save(self, offset: int) -> None:
        self._offset = offset
        state = {"offset": offset, "run_id": self.run_id, "version": self.version}
        temporary = self._folder / f"{STATE}.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(self._folder / STATE)


@contextmanager
def _only_uploader(folder: Path) -> Iterator[None]:
    """Holds the run's lock: two uploads at once would create two MLflow runs."""
    with (folder / f"{STATE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _spelt(value: object) -> str:
    """Returns a setting as a flag takes it."""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _find_or_create_run(client: MlflowClient, record: Record, uri: str) -> str:
    experiment = _experiment(client, record["experiment"], uri)
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{record['key']}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {**record["tags"], KEY_TAG: record["key"]}
    run = client.create_run(experiment, record["time_ms"], tags, record["name"])
    run_id = str(run.info.run_id)
    params = [Param(key, _spelt(value)[:MOST_VALUE]) for key, value in record["params"].items()]
    for first in range(0, len(params), MOST_PARAMS):
        client.log_batch(run_id, params=params[first : first + MOST_PARAMS])
    dataset = record["dataset"]
    entity = Dataset(dataset["name"], dataset["digest"], "local", json.dumps({"uri": dataset["root"]}))
    client.log_inputs(run_id, [DatasetInput(entity, [])])
    return run_id


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # A sqlite store would otherwise put artifacts under the working directory of whoever comes first.
    place = f"{Path(uri.removeprefix('sqlite:///')).parent}/mlartifacts" if uri.startswith("sqlite:") else None
    return str(client.create_experiment(name, place))


def batched(tail: Tail) -> Iterator[tuple[list[Record], int]]:
    """Yields the records that came since, metrics as many at a time as MLflow takes, with the offset behind them."""
    waiting: list[Record] = []
    behind = tail.offset
    for record in tail.read():
        is_metrics = record["kind"] == "metrics"
        many = sum(len(one["values"]) for one in waiting) + (len(record["values"]) if is_metrics else 0)
        if waiting and (not is_metrics or many > MOST_METRICS):
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
    return [Metric(_key(name), value, record["time_ms"], record["step"]) for name, value in record["values"].items()]


def _key(name: str) -> str:
    """Returns a metric name in the characters MLflow allows; class names hold anything."""
    return "".join(letter if letter.isalnum() or letter in "_-. :/" else "_" for letter in name)


class Uploading(threading.Thread):
    """Uploads a journal beside the training, every few seconds, and says once when MLflow is away."""

    def __init__(self, upload: Upload, say: Callable[[str], None], every_s: float = 2.0) -> None:
        super().__init__(daemon=True, name="segray-upload")
        self._upload, self._say, self._every_s = upload, say, every_s
        self._stopped = threading.Event()
        self._complained = False

    def run(self) -> None:
        """Uploads until stopped."""
        while not self._stopped.wait(self._every_s):
            self._try()

    def _try(self) -> bool:
        try:
            self._upload.drain()
        except RegistryError as error:
            if not self._complained:
                self._complained = True
                self._say(f"{error}; training goes on and keeps its records.")
            return False
        return True

    def finish(self) -> bool:
        """Stops, uploads what is left, and returns whether all of it is there."""
        self._stopped.set()
        self.join()
        return self._try()
