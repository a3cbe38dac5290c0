"""Inference on images. Import order: batch, predictor, segment."""
