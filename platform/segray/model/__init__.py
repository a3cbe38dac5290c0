"""SegFormer: the encoder, the decode heads, the model and everybody's weights."""

from segray.model.segformer import SegFormer, build

__all__ = ["SegFormer", "build"]
