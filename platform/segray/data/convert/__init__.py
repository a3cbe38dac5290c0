"""Conversion of a source to parquet shards. Order of imports: convert, resume, shards, splits and labels, metadata."""
