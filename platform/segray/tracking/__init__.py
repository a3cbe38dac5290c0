"""What a run leaves in MLflow, by way of a journal of its own."""

from segray.tracking.journal import JOURNAL, Journal, Record, Tail
from segray.tracking.upload import Upload, Uploading

__all__ = ["JOURNAL", "Journal", "Record", "Tail", "Upload", "Uploading"]
