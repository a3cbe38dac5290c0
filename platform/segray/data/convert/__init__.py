"""Conversion of a source to parquet shards. Import order: convert, resume, shards, splits and labels, metadata."""
