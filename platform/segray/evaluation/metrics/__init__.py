"""Segmentation metrics from integer counts. They are exact for any sharding, batch size and order."""
