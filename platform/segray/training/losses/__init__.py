"""Loss terms. Order of imports: build, region and pixel, fused."""
