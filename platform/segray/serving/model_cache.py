"""Versions at hand: fetched from the registry once, and kept on disk for when it is away."""

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
    """Versions of one model.

    Args:
        model: registered model.
        uri: MLflow store.
        folder: where versions are kept, below it a folder for each store and model.
    """

    def __init__(self, model: str, uri: str, folder: Path) -> None:
        silence_libraries()
        self._model, self._uri = model, uri
        store = hashlib.blake2b(paths.redact(uri).encode(), digest_size=6).hexdigest()
        self._folder = folder / f"{model}-{store}"
        self._lock = Lock()  # several replicas ask at once

    def aliases(self) -> dict[str, str]:
        """Returns the version behind each alias, and remembers it.

        Raises:
            RegistryError: there is no such model, or the registry does not answer.
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
        """Returns the aliases as they were last seen."""
        return self._read(self._folder / ALIASES)

    def get(self, number: str) -> ModelFiles:
        """Returns a version: the one kept, unless the registry has another under this number by now.

        Raises:
            RegistryError: it is not kept, and the registry has it not, or does not answer.
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
        """Removes versions that are not needed."""
        with self._lock, suppress(OSError):
            for kept in self._folder.iterdir():
                if kept.is_dir() and kept.name not in needed:
                    shutil.rmtree(kept, ignore_errors=True)

    def _client(self) -> MlflowClient:
        return MlflowClient(self._uri, self._uri)

    def _there(self) -> str:
        """Returns what there is instead, if the registry tells."""
        try:
            return available_hint(self._client(), f"models:/{self._model}")
        except UNAVAILABLE:
            return "."

    def _about(self, number: str) -> dict[str, dict[str, str]]:
        """Returns what is known of a version that is kept; nothing of one that is not whole."""
        kept = self._folder / number
        is_whole = all((kept / FILES / part).is_file() for part in CHECKPOINT_FILES)
        return self._read(kept / INFO_FILE) if is_whole else {}

    def _known(self, number: str) -> dict[str, dict[str, str]]:
        """Returns what tells a version from another of its number, and its tags."""
        try:
            found = self._client().get_model_version(self._model, number)
        except UNAVAILABLE as error:
            raise RegistryError(f"version {number} of {self._model}: {error_summary(error)}") from error
        made = {"run": str(found.run_id), "at": str(found.creation_timestamp), "source": str(found.source)}
        return {"made": made, "tags": {key: str(value) for key, value in found.tags.items()}}

    def _fetch(self, number: str, known: Mapping[str, dict[str, str]]) -> None:
        """Puts a version on the shelf; what is there by its name is whole."""
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
        """Refuses files that are not those that were registered."""
        if registered is not None and package_digest(folder) != registered:
            shutil.rmtree(folder.parent, ignore_errors=True)  # it may be ours that was spoilt: it is fetched again
            raise RegistryError(f"version {number} of {self._model} holds other files than were registered.")

    @staticmethod
    def _remember(file: Path, found: Mapping[str, Any]) -> None:
        """Notes something; what there is no room for is asked again."""
        new = file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(found))
            new.rename(file)

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        try:
            return dict(json.loads(file.read_text()))
        except (OSError, ValueError):  # not kept, or cut off while it was
            return {}
