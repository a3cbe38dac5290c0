"""SegFormer models: encoder, decode heads, checkpoints and weight conversion."""
