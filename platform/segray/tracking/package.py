"""MLflow model folder of a checkpoint. The folder loads without pickle."""

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
# Files of a registered model. The optimiser state stays with the run.
CHECKPOINT_FILES = (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.CLASSES, checkpoint.META)
SIGNATURE = ModelSignature(inputs=Schema([ColSpec("binary", "image")]), outputs=Schema([ColSpec("binary", "mask")]))
IMPORTED = ("mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "pydantic", "PyYAML", "safetensors")
REQUIRED = ("segray", "torch", *IMPORTED)
"""Packages that pyfunc_model.py imports directly or through segray. A test checks this list."""


def build_package(folder: Path, temporary: Path) -> Path:
    """Builds an MLflow model folder from a checkpoint and returns its path below `temporary`."""
    checkpoint_dir = temporary / "checkpoint"
    checkpoint_dir.mkdir()
    for name in CHECKPOINT_FILES:
        shutil.copy(folder / name, checkpoint_dir / name)
    package = temporary / ARTIFACT_PATH
    with warnings.catch_warnings():
        # An input example would add an image to every version. The signature holds the same information.
        warnings.filterwarnings("ignore", ".*input example.*")
        mlflow.pyfunc.save_model(
            package,
            python_model=str(LOADER),
            artifacts={"checkpoint": str(checkpoint_dir)},
            signature=SIGNATURE,
            pip_requirements=requirements(),
        )
    return package


def requirements() -> list[str]:
    """Returns the pip requirements of a version, pinned to the installed versions."""
    return [f"{name}=={installed}" for name in REQUIRED if (installed := _installed_version(name)) is not None]


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # installed as another build, such as opencv-python, or as a source folder on the path
        return None


def packaged_checkpoint(package: Path) -> Path:
    """Returns the checkpoint folder inside an MLflow model folder."""
    return package / "artifacts" / "checkpoint"


def package_digest(folder: Path) -> str:
    """Computes the SHA-256 digest of a checkpoint: weights, configuration, classes and metadata.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
    """
    digest = hashlib.sha256()
    for name in CHECKPOINT_FILES:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
