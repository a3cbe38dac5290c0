"""Model references: a checkpoint folder, a registered version, or a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segray.config import Config, paths
from segray.inference import predictor

REGISTRY_SCHEMES = ("models:/", "runs:/")


@contextmanager
def open_model(model: str, config: Config) -> Iterator[Path]:
    """Context manager that returns the local checkpoint folder of a model, and removes a download at the end.

    Args:
        model: a folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        config: configuration, which contains the URI of the MLflow store for `models:/` and `runs:/` references.

    Raises:
        RegistryError: the model, alias, version or run does not exist, its files are not those that were registered,
            or the store does not respond.
    """
    if not model.startswith(REGISTRY_SCHEMES):
        yield Path(model)
        return
    from segray.tracking.registry import open_checkpoint  # noqa: PLC0415 importing MLflow takes a second, and a folder does not need it

    with open_checkpoint(model, paths.tracking_uri(config)) as folder:
        yield folder


class ReferencePredictor(predictor.Predictor):
    """Segments images: `segray.Predictor("models:/segray@champion")(image)`.

    Args:
        model: a checkpoint folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        device: "cpu", "cuda" or "auto".
        tracking_uri: URI of the MLflow store. Defaults to MLFLOW_TRACKING_URI, or mlflow.db in the working directory.
    """

    def __init__(self, model: Path | str, device: str = "auto", tracking_uri: str | None = None) -> None:
        config = Config()
        tracking = config.tracking.model_copy(update={"uri": tracking_uri})
        with open_model(str(model), config.model_copy(update={"tracking": tracking})) as folder:
            super().__init__(folder, device)
