"""Settings of experiment tracking and the model registry."""

from typing import Annotated

from pydantic import Field

from segray.config.fields import Settings

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # a valid name of a folder and of a registered model


class TrackingConfig(Settings):
    """Experiment tracking and model registry in MLflow."""

    uri: str | None = None
    """MLflow tracking URI. Defaults to MLFLOW_TRACKING_URI, else to the file mlflow.db next to the results folder."""
    experiment: str = "segray"
    """Name of the MLflow experiment."""
    model: Annotated[str, Field(pattern=NAME)] = "segray"
    """Name of the registered model. The best checkpoint becomes a version of it."""
