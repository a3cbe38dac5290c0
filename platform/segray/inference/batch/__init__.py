"""Batch inference: inputs, outputs and the job that segments the images."""
