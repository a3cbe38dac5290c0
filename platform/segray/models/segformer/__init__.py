"""SegFormer. Order of imports: model, heads and encoder, fused_head and mix_ffn, tiling."""
