"""What the tests of promotion share: a registry of three versions, and clients that die at any step."""

import shutil
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from segray.promotion import aliases

WRITES = (
    *("create_registered_model", "delete_registered_model", "set_registered_model_alias", "set_model_version_tag"),
    *("delete_registered_model_alias", "update_model_version", "create_run", "log_batch", "log_dict", "set_tag"),
    *("set_terminated", "set_registered_model_tag"),
)


class Killed(BaseException):
    """Nobody catches it, as nobody catches a kill."""


class Dying:
    """A client that dies behind its n-th write to the store, which is before the next."""

    def __init__(self, client, last):
        self._client, self._left = client, last

    def __getattr__(self, name):
        found = getattr(self._client, name)
        return found if name not in WRITES else lambda *words, **named: self._write(found, *words, **named)

    def _write(self, found, *words, **named):
        self._left -= 1
        answer = found(*words, **named)
        if self._left == 0:
            raise Killed
        return answer


@pytest.fixture
def store(tmp_path, empty_store):
    """A registry whose model has three versions: 1 was served before, 2 is served, 3 is the challenger."""
    database = shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{database}"
    client = MlflowClient(uri, uri)
    client.create_registered_model("streets")
    for _ in range(3):
        client.create_model_version("streets", str(tmp_path))
    for alias, version in (("previous", "1"), ("champion", "2"), ("challenger", "3")):
        client.set_registered_model_alias("streets", alias, version)
    return SimpleNamespace(client=client, uri=uri, place=tmp_path)


@pytest.fixture
def served():
    """Returns (previous, champion, challenger) of the model, once there is no lock left."""

    def look(client):
        assert [model.name for model in client.search_registered_models()] == ["streets"]
        found = aliases.get_aliases(client, "streets")
        return found["previous"], found["champion"], found["challenger"]

    return look
