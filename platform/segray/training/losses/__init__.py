"""Loss terms. Import order: build, region and pixel, fused."""
