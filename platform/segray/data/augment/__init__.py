"""Training crops. Order of imports: augmenter, albumentations_pipeline and recipe, mixing, crop and colour."""
