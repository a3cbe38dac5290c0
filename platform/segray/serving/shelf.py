"""Versions at hand: fetched from the registry once, and kept on disk for when it is away."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from segray import places, registry
from segray.errors import DataError, RegistryError
from segray.quiet import quieten
from segray.registry.packing import weights_digest
from segray.serving.version import Version

ALIASES, ABOUT = "aliases.json", "about.json"
FILES, RAW = "checkpoint", "raw"


class Shelf:
    """Versions of one model.

    Args:
        model: registered model.
        uri: MLflow store.
        folder: where versions are kept, below it a folder for each store and model.
    """

    def __init__(self, model: str, uri: str, folder: Path) -> None:
        quieten()
        self._model, self._uri = model, uri
        store = hashlib.blake2b(places.masked(uri).encode(), digest_size=6).hexdigest()
        self._folder = folder / f"{model}-{store}"

    def aliases(self) -> dict[str, str]:
        """Returns the version behind each alias, and remembers it.

        Raises:
            RegistryError: there is no such model, or the registry does not answer.
        """
        registry.check_there(self._uri, f"model {self._model}")
        client = MlflowClient(self._uri, self._uri)
        try:
            found = client.get_registered_model(self._model).aliases
        except registry.UNAVAILABLE as error:
            there = registry.known(client, f"models:/{self._model}")
            raise RegistryError(f"{places.masked(self._uri)}: {registry.first_line(error)}{there}") from error
        aliases = {alias: str(version) for alias, version in found.items()}
        if aliases != self.remembered():
            self._remember(self._folder / ALIASES, aliases)
        return aliases

    def remembered(self) -> dict[str, str]:
        """Returns the aliases as they were last seen."""
        return self._read(self._folder / ALIASES)

    def version(self, number: str) -> Version:
        """Returns a version: the one kept, unless the registry has another under this number by now.

        Raises:
            RegistryError: it is not kept, and the registry has it not, or does not answer.
        """
        kept = self._folder / number
        about = self._read(kept / ABOUT)
        try:
            known = self._known(number)
        except RegistryError:
            if not about:
                raise
            known = about
        if about != known:
            self._fetch(number, known)
        self._check(kept / FILES, number, known["tags"].get(registry.WEIGHTS_TAG))
        return Version.read(self._model, number, kept / FILES, known["tags"])

    def tidy(self, needed: Collection[str]) -> None:
        """Removes versions that are not needed."""
        for kept in self._folder.iterdir() if self._folder.is_dir() else ():
            if kept.is_dir() and kept.name not in needed:
                shutil.rmtree(kept, ignore_errors=True)

    def _known(self, number: str) -> dict[str, dict[str, str]]:
        """Returns what tells a version from another of its number, and its tags."""
        try:
            found = MlflowClient(self._uri, self._uri).get_model_version(self._model, number)
        except registry.UNAVAILABLE as error:
            raise RegistryError(f"version {number} of {self._model}: {registry.first_line(error)}") from error
        made = {"run": str(found.run_id), "at": str(found.creation_timestamp), "source": str(found.source)}
        return {"made": made, "tags": {key: str(value) for key, value in found.tags.items()}}

    def _fetch(self, number: str, known: Mapping[str, dict[str, str]]) -> None:
        """Puts a version on the shelf; what is there by its name is whole."""
        made = self._folder / f".{number}-{os.getpid()}"
        try:
            shutil.rmtree(made, ignore_errors=True)
            (made / RAW).mkdir(parents=True)
            fetched = registry.fetch(f"models:/{self._model}/{number}", self._uri, made / RAW)
            fetched.rename(made / FILES)
            shutil.rmtree(made / RAW)
            (made / ABOUT).write_text(json.dumps(known))
            shutil.rmtree(self._folder / number, ignore_errors=True)
            made.rename(self._folder / number)
        except OSError as error:
            raise RegistryError(f"version {number} of {self._model} cannot be kept: {error}") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _check(self, folder: Path, number: str, registered: str | None) -> None:
        """Refuses weights that are not those that were registered."""
        if registered is not None and weights_digest(folder) != registered:
            shutil.rmtree(folder.parent, ignore_errors=True)  # it may be ours that was spoilt: it is fetched again
            raise RegistryError(f"version {number} of {self._model} holds other weights than were registered.")

    def _remember(self, file: Path, found: Mapping[str, str]) -> None:
        new = file.with_suffix(f".{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(found))
            new.rename(file)
        except OSError as error:
            raise DataError(f"{file} cannot be written ({error}); expected room to keep versions in.") from error

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        try:
            return dict(json.loads(file.read_text()))
        except (OSError, ValueError):  # not kept, or cut off while it was
            return {}
