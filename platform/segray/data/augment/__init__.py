"""Training crops. The entry point is `augmenter`."""
