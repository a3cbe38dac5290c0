"""Training crops. Import order: augmenter, albumentations_pipeline and recipe, mixing, crop and colour."""
