"""Benchmarks of segray and peers. All candidates take turns in one run, so that the ratios are robust to noise."""
