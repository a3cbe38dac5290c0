"""Segmentation metrics from integer counts: exact whatever the sharding, the batch size or the order."""
