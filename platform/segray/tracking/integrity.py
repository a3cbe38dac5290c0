"""Verification of the files of a version. A version holds data only: files of a fixed list, each with its digest.

The digests are tags in the registry, so that who can only write files cannot change a version without being noticed.
This module loads no MLflow.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from segray.core.errors import RegistryError
from segray.core.parsing import parse_json, parse_yaml
from segray.models import checkpoint
from segray.tracking.tags import DIGEST_TAG, FILES_TAG

CHECKPOINT_FILES = (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.CLASSES, checkpoint.META)
"""Files of a registered checkpoint. The optimiser state stays with the run."""
MODEL_FILE = "MLmodel"
MLFLOW_FILES = (MODEL_FILE, "conda.yaml", "python_env.yaml", "requirements.txt")
LOADER_MODULE = "segray.tracking.pyfunc_model"
MAX_NAMES = 5


@dataclass(frozen=True)
class Layout:
    """File names of a version.

    Attributes:
        checkpoint_dir: folder of the checkpoint.
        code: files with code, which segray neither reads nor runs.
        loader_module: module that MLflow's own tools import to load the version.
    """

    checkpoint_dir: str
    code: tuple[str, ...]
    loader_module: str

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files that a version may contain."""
        return (*MLFLOW_FILES, *self.code, *(f"{self.checkpoint_dir}/{name}" for name in CHECKPOINT_FILES))


LAYOUT = Layout("data/checkpoint", (), LOADER_MODULE)
LEGACY_LAYOUT = Layout("artifacts/checkpoint", ("loader.py", "pyfunc_model.py"), "mlflow.pyfunc.loaders.code_model")
"""Layout of earlier releases: with loader code, and with a digest of the checkpoint alone."""


def packaged_checkpoint(package: Path) -> Path:
    """Returns the checkpoint folder of a version."""
    legacy = package / LEGACY_LAYOUT.checkpoint_dir
    return legacy if legacy.is_dir() else package / LAYOUT.checkpoint_dir


def integrity_tags(package: Path) -> dict[str, str]:
    """Returns the tags that verify the files of a version: one digest for each file, and one for the checkpoint."""
    digests = _file_digests(package, "the new version")
    checkpoint_digests = _checkpoint_digests(digests, LAYOUT)
    return {FILES_TAG: json.dumps(digests), DIGEST_TAG: _joint_digest(checkpoint_digests)}


def package_digest(folder: Path) -> str:
    """Computes the SHA-256 digest of a checkpoint: weights, configuration, classes and metadata.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
    """
    return _joint_digest({name: _digest_of(folder / name) for name in CHECKPOINT_FILES})


def verify_package(package: Path, tags: Mapping[str, str], subject: str) -> Path:
    """Verifies all files of a version and returns its checkpoint folder.

    The version may have the layout of earlier releases if its tags have no digest of each file. No code is imported.

    Args:
        package: folder of the version.
        tags: tags of the version in the registry.
        subject: name of the version, for the error message.

    Raises:
        RegistryError: a file is missing, unknown, a link, or differs from the registered file.
    """
    layout = LEGACY_LAYOUT if FILES_TAG not in tags and (package / LEGACY_LAYOUT.checkpoint_dir).is_dir() else LAYOUT
    digests = _file_digests(package, subject)
    _require_known(sorted(digests.keys() - set(layout.files)), subject)
    needed = set(layout.files) - set(layout.code)
    _require_present(sorted(needed - digests.keys()), subject)
    if FILES_TAG in tags:
        _require_equal(digests, _registered_digests(tags, subject), subject)
    verify_checkpoint(_checkpoint_digests(digests, layout), tags, subject)
    _require_loader(package / MODEL_FILE, layout, subject)
    return package / layout.checkpoint_dir


def verify_checkpoint(digests: Mapping[str, str], tags: Mapping[str, str], subject: str) -> None:
    """Verifies the files of a version's checkpoint. A version without digests in its tags passes.

    Args:
        digests: SHA-256 of each file of the checkpoint, by name.
        tags: tags of the version in the registry.
        subject: name of the version, for the error message.

    Raises:
        RegistryError: a file differs from the registered file.
    """
    if FILES_TAG in tags:
        _require_equal(digests, _checkpoint_digests(_registered_digests(tags, subject), LAYOUT), subject)
    elif DIGEST_TAG in tags and (joint := _joint_digest(digests)) != tags[DIGEST_TAG]:
        raise _refusal(
            subject,
            f"one of {', '.join(CHECKPOINT_FILES)} differs from the registered file (SHA-256 of all {joint[:12]}, "
            f"registered {tags[DIGEST_TAG][:12]})",
        )


def _file_digests(package: Path, subject: str) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder, by its path relative to the folder."""
    digests = {}
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise _refusal(subject, f"{name} is a link or a special file; expected regular files only")
        if path.is_file():
            digests[name] = _digest_of(path)
    return digests


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _checkpoint_digests(digests: Mapping[str, str], layout: Layout) -> dict[str, str]:
    return {name: digests[f"{layout.checkpoint_dir}/{name}"] for name in CHECKPOINT_FILES}


def _joint_digest(digests: Mapping[str, str]) -> str:
    """Returns the digest of a checkpoint from the digests of its files."""
    return sha256(b"".join(bytes.fromhex(digests[name]) for name in CHECKPOINT_FILES)).hexdigest()


def _registered_digests(tags: Mapping[str, str], subject: str) -> dict[str, str]:
    digests = _parse_json(tags[FILES_TAG])
    if not isinstance(digests, dict) or digests.keys() != set(LAYOUT.files):
        files = ", ".join(LAYOUT.files)
        raise _refusal(subject, f"its tag {FILES_TAG} is damaged; expected the digest of each of {files}")
    return digests


def _parse_json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _require_known(unknown: list[str], subject: str) -> None:
    if unknown:
        names = ", ".join(unknown[:MAX_NAMES]) + (", ..." if len(unknown) > MAX_NAMES else "")
        raise _refusal(subject, f"it contains {names}, which no version of segray has")


def _require_present(missing: list[str], subject: str) -> None:
    if missing:
        raise _refusal(subject, f"it does not contain {', '.join(missing)}")


def _require_equal(digests: Mapping[str, str], registered: Mapping[str, str], subject: str) -> None:
    changed = [name for name, digest in digests.items() if digest != registered[name]]
    if changed:
        name = changed[0]
        raise _refusal(
            subject,
            f"{', '.join(changed)} differ{'s' if len(changed) == 1 else ''} from the registered file (SHA-256 of "
            f"{name} {digests[name][:12]}, registered {registered[name][:12]})",
        )


def _require_loader(file: Path, layout: Layout, subject: str) -> None:
    """Checks that MLflow's own tools would load the version with segray's loader."""
    try:
        flavor = parse_yaml(file.read_text())["flavors"]["python_function"]
        loader = flavor["loader_module"]
    except (OSError, ValueError, KeyError, TypeError):
        loader = None
    if loader != layout.loader_module:
        raise _refusal(subject, f"its {MODEL_FILE} has the loader_module {loader}; expected {layout.loader_module}")


def _refusal(subject: str, reason: str) -> RegistryError:
    return RegistryError(f"{subject} cannot be loaded: {reason}; restore its files or choose another version.")
