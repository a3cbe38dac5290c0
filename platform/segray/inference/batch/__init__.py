"""Masks of many images: what is to be segmented, where the masks go, and the job that makes them."""
