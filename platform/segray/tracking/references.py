"""Model references: a checkpoint folder, a registered version, or a run."""

from pathlib import Path

from segray.config import Config, paths
from segray.inference import predictor

REGISTRY_SCHEMES = ("models:/", "runs:/")


def resolve_checkpoint(model: str, config: Config) -> Path:
    """Returns the local checkpoint folder of a model.

    Args:
        model: a folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        config: configuration, which contains the URI of the MLflow store for `models:/` and `runs:/` references.

    Raises:
        RegistryError: the model, alias, version or run does not exist, or the store does not respond.
    """
    if not model.startswith(REGISTRY_SCHEMES):
        return Path(model)
    from segray.tracking.registry import download_checkpoint  # noqa: PLC0415 importing MLflow takes a second, and a folder does not need it

    return download_checkpoint(model, paths.tracking_uri(config))


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
        super().__init__(resolve_checkpoint(str(model), config.model_copy(update={"tracking": tracking})), device)
