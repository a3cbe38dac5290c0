"""The SegFormer model. Import order: model, heads and encoder, fused_head and mix_ffn, tiling."""
