"""Loader code of a registered version. MLflow runs this file to load the version.

The model maps image bytes to mask bytes. The code is logged together with safetensors weights, so loading a version
does not use pickle.
"""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from segray.data.images import decode_image, encode_mask
from segray.inference.predictor import Predictor


class SegmentationModel(PythonModel):  # type: ignore[misc]
    """Segments encoded images (JPEG, PNG, WebP) into one-channel PNG masks of class ids."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the checkpoint of the version."""
        self._predictor = Predictor(context.artifacts["checkpoint"])

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Maps a data frame with the column `image` to a data frame with the column `mask`. Both columns hold bytes."""
        masks = [encode_mask(self._predictor(decode_image(image))) for image in model_input["image"]]
        return pd.DataFrame({"mask": masks})


set_model(SegmentationModel())
