"""The code a registered version carries: MLflow runs this file to load it. Image bytes in, mask bytes out.

It is logged as code beside safetensors weights, so loading a version opens no pickle.
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
        """Returns a frame with the column `mask` for a frame with the column `image`, both bytes."""
        masks = [encode_mask(self._predictor(decode_image(image))) for image in model_input["image"]]
        return pd.DataFrame({"mask": masks})


set_model(SegmentationModel())
