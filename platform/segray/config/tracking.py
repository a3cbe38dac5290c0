"""The settings: one tree of frozen models, addressed everywhere by dotted keys.

`--optim.lr 6e-5` on the command line, `optim.lr` as a search-space key, an MLflow parameter and a key in a
checkpoint's `config.json` are the same thing. A Config that validates is one that can run.
"""

from typing import Annotated

from pydantic import Field

from segray.config.base import Settings

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of a folder, of a registered model


class TrackingConfig(Settings):
    """Where runs and models are recorded."""

    uri: str | None = None
    """MLflow tracking URI; none takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""
    experiment: str = "segray"
    """MLflow experiment."""
    model: Annotated[str, Field(pattern=NAME)] = "segray"
    """Name the best checkpoint is registered under."""
