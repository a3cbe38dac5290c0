"""Datasets: from a source on disk to batches on a device."""
