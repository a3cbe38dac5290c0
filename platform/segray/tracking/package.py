"""MLflow model folder of a checkpoint. The folder contains data only: no code and no pickle."""

import shutil
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from segray.tracking.integrity import CHECKPOINT_FILES, LAYOUT, LOADER_MODULE

ARTIFACT_PATH = "model"
SIGNATURE = ModelSignature(inputs=Schema([ColSpec("binary", "image")]), outputs=Schema([ColSpec("binary", "mask")]))
IMPORTED = ("mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "pydantic", "PyYAML", "safetensors")
REQUIRED = ("segray", "torch", *IMPORTED)
"""Packages that the loader module imports directly or through segray. A test checks this list."""


def build_package(folder: Path, temporary: Path) -> Path:
    """Builds an MLflow model folder from a checkpoint and returns its path below `temporary`."""
    checkpoint_dir = temporary / Path(LAYOUT.checkpoint_dir).name  # MLflow copies it into the folder `data`
    checkpoint_dir.mkdir()
    for name in CHECKPOINT_FILES:
        shutil.copy(folder / name, checkpoint_dir / name)
    package = temporary / ARTIFACT_PATH
    with warnings.catch_warnings():
        # An input example would add an image to every version. The signature holds the same information.
        warnings.filterwarnings("ignore", ".*input example.*")
        mlflow.pyfunc.save_model(
            package,
            loader_module=LOADER_MODULE,
            data_path=str(checkpoint_dir),
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
