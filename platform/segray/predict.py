"""Import path of `Predictor` in the loader code of model versions that were registered before the packages moved."""

from segray.inference.predictor import Predictor

__all__ = ["Predictor"]
