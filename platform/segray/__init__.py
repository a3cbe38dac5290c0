"""SegFormer on Ray: train, tune, ship and serve semantic segmentation."""
