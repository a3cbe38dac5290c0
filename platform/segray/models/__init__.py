"""SegFormer: the encoder, the decode heads, the model and everybody's weights."""
