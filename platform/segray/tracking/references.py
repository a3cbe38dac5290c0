"""A model by any of its names: a checkpoint folder, a registered version, a run."""

from pathlib import Path

from segray.config import Config, paths
from segray.inference import predictor

REGISTRY_SCHEMES = ("models:/", "runs:/")


def resolve_checkpoint(model: str, config: Config) -> Path:
    """Returns the local checkpoint folder of a model.

    Args:
        model: a folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        config: names the MLflow store that knows the last three.

    Raises:
        RegistryError: there is no such model, alias, version or run, or the store does not answer.
    """
    if not model.startswith(REGISTRY_SCHEMES):
        return Path(model)
    from segray.tracking.registry import download_checkpoint  # noqa: PLC0415 MLflow takes a second to import, which a folder does not need

    return download_checkpoint(model, paths.tracking_uri(config))


class ReferencePredictor(predictor.Predictor):
    """Segments images: `segray.Predictor("models:/segray@champion")(image)`.

    Args:
        model: a checkpoint folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/model`.
        device: "cpu", "cuda" or "auto".
        tracking_uri: MLflow store; none takes MLFLOW_TRACKING_URI, or mlflow.db in the working directory.
    """

    def __init__(self, model: Path | str, device: str = "auto", tracking_uri: str | None = None) -> None:
        config = Config()
        tracking = config.tracking.model_copy(update={"uri": tracking_uri})
        super().__init__(resolve_checkpoint(str(model), config.model_copy(update={"tracking": tracking})), device)
