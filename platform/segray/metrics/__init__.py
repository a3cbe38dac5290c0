"""Segmentation metrics from integer counts: exact whatever the sharding, the batch size or the order."""

from segray.metrics.counts import Confusion, Table, confusion, table_of
from segray.metrics.scores import Absent, Scores, scores

__all__ = ["Absent", "Confusion", "Scores", "Table", "confusion", "scores", "table_of"]
