"""Model cache: versions are fetched from the registry once and kept on disk for registry outages."""

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
from segray.serving.model_version import ModelFiles
from segray.tracking.client import UNAVAILABLE, error_summary, require_store
from segray.tracking.package import CHECKPOINT_FILES, package_digest
from segray.tracking.registry import DIGEST_TAG, available_hint, download_checkpoint

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
        self._lock = Lock()  # several replicas request versions concurrently

    def aliases(self) -> dict[str, str]:
        """Returns the version of each alias from the registry, and caches the result.

        Raises:
            RegistryError: the model does not exist, or the registry does not answer.
        """
        require_store(self._uri, f"model {self._model}")
        try:
            found = self._client().get_registered_model(self._model).aliases
        except UNAVAILABLE as error:
            raise RegistryError(f"{paths.redact(self._uri)}: {error_summary(error)}{self._there()}") from error
        aliases = {alias: str(version) for alias, version in found.items()}
        if aliases != self.cached_aliases():
            self._remember(self._folder / ALIASES, aliases)
        return aliases

    def cached_aliases(self) -> dict[str, str]:
        """Returns the cached aliases from the last successful request."""
        return self._read(self._folder / ALIASES)

    def get(self, number: str) -> ModelFiles:
        """Returns the files of a version, from the cache if it is current.

        The version is fetched again if the registry now holds a different version under the same number.

        Raises:
            RegistryError: the version is not cached and the registry does not provide it, or its files differ from
                the registered digest.
        """
        with self._lock:
            about = self._about(number)
            try:
                known = self._known(number)
            except RegistryError:
                if not about:
                    raise
                known = about
            if about.get("made") != known["made"]:
                self._fetch(number, known)
            elif about != known:
                self._remember(self._folder / number / INFO_FILE, known)
            files = self._folder / number / FILES
            self._check(files, number, known["tags"].get(DIGEST_TAG))
            return ModelFiles.from_dir(self._model, number, files, known["tags"])

    def evict_except(self, needed: Collection[str]) -> None:
        """Removes all cached versions except `needed`."""
        with self._lock, suppress(OSError):
            for kept in self._folder.iterdir():
                if kept.is_dir() and kept.name not in needed:
                    shutil.rmtree(kept, ignore_errors=True)

    def _client(self) -> MlflowClient:
        return MlflowClient(self._uri, self._uri)

    def _there(self) -> str:
        """Returns a hint with the available models or versions, or "." if the registry does not answer."""
        try:
            return available_hint(self._client(), f"models:/{self._model}")
        except UNAVAILABLE:
            return "."

    def _about(self, number: str) -> dict[str, dict[str, str]]:
        """Returns the cached metadata of a version, or an empty dict if its files are incomplete."""
        kept = self._folder / number
        is_whole = all((kept / FILES / part).is_file() for part in CHECKPOINT_FILES)
        return self._read(kept / INFO_FILE) if is_whole else {}

    def _known(self, number: str) -> dict[str, dict[str, str]]:
        """Requests the origin (run, creation time, source) and the tags of a version from the registry.

        The origin distinguishes versions that share a number.
        """
        try:
            found = self._client().get_model_version(self._model, number)
        except UNAVAILABLE as error:
            raise RegistryError(f"version {number} of {self._model}: {error_summary(error)}") from error
        made = {"run": str(found.run_id), "at": str(found.creation_timestamp), "source": str(found.source)}
        return {"made": made, "tags": {key: str(value) for key, value in found.tags.items()}}

    def _fetch(self, number: str, known: Mapping[str, dict[str, str]]) -> None:
        """Downloads a version into the cache. The rename at the end makes sure that only complete versions appear."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=self._folder) as temporary:
                made = Path(temporary) / number
                (made / DOWNLOAD_DIR).mkdir(parents=True)
                download_checkpoint(f"models:/{self._model}/{number}", self._uri, made / DOWNLOAD_DIR).rename(
                    made / FILES
                )
                shutil.rmtree(made / DOWNLOAD_DIR)
                (made / INFO_FILE).write_text(json.dumps(known))
                shutil.rmtree(self._folder / number, ignore_errors=True)
                made.rename(self._folder / number)
        except OSError as error:
            raise RegistryError(f"version {number} of {self._model} cannot be kept: {error}") from error

    def _check(self, folder: Path, number: str, registered: str | None) -> None:
        """Raises RegistryError if the files do not match the registered digest."""
        if registered is not None and package_digest(folder) != registered:
            # The cached copy may be damaged. The next request fetches it again.
            shutil.rmtree(folder.parent, ignore_errors=True)
            raise RegistryError(f"version {number} of {self._model} holds other files than were registered.")

    @staticmethod
    def _remember(file: Path, found: Mapping[str, Any]) -> None:
        """Writes a cache file atomically. Write errors are ignored, because the data can be requested again."""
        new = file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(found))
            new.rename(file)

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        try:
            return dict(json.loads(file.read_text()))
        except (OSError, ValueError):  # missing or truncated
            return {}
