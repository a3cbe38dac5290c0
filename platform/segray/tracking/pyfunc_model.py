"""Loader module of registered versions, for MLflow's own tools. A version names this module and contains no code.

The model maps image bytes to mask bytes. The weights are in the safetensors format, so loading a version does not use
pickle.
"""

from pathlib import Path

import pandas as pd

from segray.data.images import decode_image, encode_mask
from segray.inference.predictor import Predictor


class ImageModel:
    """Segments encoded images (JPEG, PNG, WebP) into one-channel PNG masks of class ids.

    Args:
        checkpoint_dir: checkpoint folder of the version.
    """

    def __init__(self, checkpoint_dir: Path) -> None:
        self._predictor = Predictor(checkpoint_dir)

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Maps a data frame with the column `image` to a data frame with the column `mask`. Both columns hold bytes."""
        masks = [encode_mask(self._predictor(decode_image(image))) for image in model_input["image"]]
        return pd.DataFrame({"mask": masks})


def _load_pyfunc(path: str) -> ImageModel:
    """Loads a version. MLflow calls this function with the checkpoint folder."""
    return ImageModel(Path(path))
