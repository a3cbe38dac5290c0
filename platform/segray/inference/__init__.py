"""A model applied to images. Order of imports: batch, predictor, segment."""
