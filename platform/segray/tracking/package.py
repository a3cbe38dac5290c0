"""A version's folder: a checkpoint as MLflow serves it, loadable without a pickle."""

import hashlib
import shutil
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from segray.models import checkpoint

ARTIFACT_PATH = "model"
LOADER = Path(__file__).with_name("pyfunc_model.py")
# What a registered model consists of; the optimiser's state stays with the run.
CHECKPOINT_FILES = (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.CLASSES, checkpoint.META)
SIGNATURE = ModelSignature(inputs=Schema([ColSpec("binary", "image")]), outputs=Schema([ColSpec("binary", "mask")]))
IMPORTED = ("mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "pydantic", "PyYAML", "safetensors")
REQUIRED = ("segray", "torch", *IMPORTED)
"""All that loader.py imports, whether itself or by way of segray; a test looks."""


def build_package(folder: Path, temporary: Path) -> Path:
    """Returns an MLflow model folder below `temporary`, made of a checkpoint."""
    staged = temporary / "checkpoint"
    staged.mkdir()
    for part in CHECKPOINT_FILES:
        shutil.copy(folder / part, staged / part)
    packed = temporary / ARTIFACT_PATH
    with warnings.catch_warnings():
        # An example would be an image of ours in every version; the signature says as much.
        warnings.filterwarnings("ignore", ".*input example.*")
        mlflow.pyfunc.save_model(
            packed,
            python_model=str(LOADER),
            artifacts={"checkpoint": str(staged)},
            signature=SIGNATURE,
            pip_requirements=requirements(),
        )
    return packed


def requirements() -> list[str]:
    """Returns what a version needs to be loaded, at the versions that are installed here."""
    return [f"{name}=={found}" for name in REQUIRED if (found := _installed(name)) is not None]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # another build of it, such as opencv-python, or a source folder on the path
        return None


def packaged_checkpoint(local: Path) -> Path:
    """Returns the checkpoint in an MLflow model folder."""
    return local / "artifacts" / "checkpoint"


def package_digest(folder: Path) -> str:
    """Returns a hash (SHA-256) of all that a checkpoint answers by: weights, settings, classes and what it is of.

    Raises:
        FileNotFoundError: a part is missing.
    """
    found = hashlib.sha256()
    for part in CHECKPOINT_FILES:
        with (folder / part).open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
