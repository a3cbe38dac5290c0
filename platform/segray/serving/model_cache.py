"""Model cache: versions are fetched from the registry once and stored on disk for registry outages."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from mlflow.tracking import MlflowClient

from segray.config import paths
from segray.core.errors import RegistryError
from segray.core.logging import silence_libraries
from segray.core.parsing import parse_json
from segray.serving.model_version import ModelFiles
from segray.tracking.client import UNAVAILABLE, error_summary, require_store
from segray.tracking.integrity import CHECKPOINT_FILES, verify_checkpoint
from segray.tracking.registry import available_hint, download_checkpoint

ALIASES, INFO_FILE = "aliases.json", "about.json"
FILES, DOWNLOAD_DIR = "checkpoint", "raw"


class ModelCache:
    """On-disk cache of the versions of one model.

    Args:
        model: name of the registered model.
        uri: URI of the MLflow store.
        folder: root folder of the cache. Each pair of store and model has its own subfolder.
    """

    def __init__(self, model: str, uri: str, folder: Path) -> None:
        silence_libraries()
        self._model, self._uri = model, uri
        store = hashlib.blake2b(paths.redact(uri).encode(), digest_size=6).hexdigest()
        self._folder = folder / f"{model}-{store}"
        self._locks: dict[str, Lock] = {}  # one per version, because replicas request versions concurrently

    def aliases(self) -> dict[str, str]:
        """Returns the version of each alias from the registry, and caches the result.

        Raises:
            RegistryError: the model does not exist, or the registry does not respond.
        """
        require_store(self._uri, f"model {self._model}")
        try:
            model = self._client().get_registered_model(self._model)
        except UNAVAILABLE as error:
            hint = self._available_hint()
            raise RegistryError(f"{paths.redact(self._uri)}: {error_summary(error)}{hint}") from error
        aliases = {alias: str(version) for alias, version in model.aliases.items()}
        if aliases != self.cached_aliases():
            _write_json(self._folder / ALIASES, aliases)
        return aliases

    def cached_aliases(self) -> dict[str, str]:
        """Returns the cached aliases from the last successful request."""
        return _read_json(self._folder / ALIASES)

    def get(self, number: str) -> ModelFiles:
        """Returns the files of a version, from the cache if it is current.

        The version is fetched again if the registry now holds a different version under the same number.

        Raises:
            RegistryError: the version is not cached and the registry does not provide it, or its files differ from
                the registered digest.
        """
        try:
            info = self._request_info(number)  # before the lock, so that timeouts do not add up
        except RegistryError:
            info = self._cached_info(number)
            if not info:
                raise
        with self._lock(number):
            cached_info = self._cached_info(number)
            if cached_info.get("made") != info["made"]:
                self._fetch(number, info)
            elif cached_info != info:
                _write_json(self._folder / number / INFO_FILE, info)
            return self._read(number, info["tags"])

    def evict_except(self, needed: Collection[str]) -> None:
        """Removes all cached versions except `needed`, and the remains of their interrupted downloads."""
        with suppress(OSError):
            for folder in self._folder.iterdir():
                number = folder.name.removeprefix(".").partition("-")[0]  # .NUMBER-RANDOM is a download
                if folder.is_dir() and number not in needed:
                    with self._lock(number):
                        shutil.rmtree(folder, ignore_errors=True)

    def _lock(self, number: str) -> Lock:
        return self._locks.setdefault(number, Lock())

    def _client(self) -> MlflowClient:
        return MlflowClient(self._uri, self._uri)

    def _available_hint(self) -> str:
        """Returns a hint with the available models or versions, or "." if the registry does not respond."""
        try:
            return available_hint(self._client(), f"models:/{self._model}")
        except UNAVAILABLE:
            return "."

    def _cached_info(self, number: str) -> dict[str, dict[str, str]]:
        """Returns the cached metadata of a version, or an empty dict if its files are incomplete."""
        folder = self._folder / number
        is_complete = all((folder / FILES / name).is_file() for name in CHECKPOINT_FILES)
        return _read_json(folder / INFO_FILE) if is_complete else {}

    def _request_info(self, number: str) -> dict[str, dict[str, str]]:
        """Requests the origin (run, creation time, source) and the tags of a version from the registry.

        The origin distinguishes versions that share a number.
        """
        try:
            version = self._client().get_model_version(self._model, number)
        except UNAVAILABLE as error:
            raise RegistryError(f"version {number} of {self._model}: {error_summary(error)}") from error
        origin = {"run": str(version.run_id), "at": str(version.creation_timestamp), "source": str(version.source)}
        return {"made": origin, "tags": {key: str(value) for key, value in version.tags.items()}}

    def _fetch(self, number: str, info: Mapping[str, dict[str, str]]) -> None:
        """Downloads a version into the cache. The rename at the end makes sure that only complete versions appear."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{number}-", dir=self._folder) as temporary:
                folder = Path(temporary) / number
                download_dir = folder / DOWNLOAD_DIR
                download_dir.mkdir(parents=True)
                checkpoint = download_checkpoint(f"models:/{self._model}/{number}", self._uri, download_dir)
                checkpoint.rename(folder / FILES)
                shutil.rmtree(download_dir)
                (folder / INFO_FILE).write_text(json.dumps(info))
                shutil.rmtree(self._folder / number, ignore_errors=True)
                folder.rename(self._folder / number)
        except OSError as error:
            raise RegistryError(f"cannot cache version {number} of {self._model}: {error}") from error

    def _read(self, number: str, tags: dict[str, str]) -> ModelFiles:
        """Reads the files of a cached version and verifies what was read.

        Raises:
            RegistryError: a file differs from the registered file.
        """
        version = ModelFiles.from_dir(self._model, number, self._folder / number / FILES, tags)
        try:
            verify_checkpoint(version.digests(), tags, f"the cached version {number} of {self._model}")
        except RegistryError:
            shutil.rmtree(self._folder / number, ignore_errors=True)  # the next request fetches it again
            raise
        return version


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a cache file atomically. Write errors are ignored, because the data can be requested again."""
    temporary = file.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content))
        temporary.rename(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(file.read_bytes()))
    except (OSError, ValueError, TypeError):  # missing or truncated
        return {}
