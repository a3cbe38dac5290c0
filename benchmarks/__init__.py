"""Benchmarks: segray and a peer take turns in one run, so that the ratio survives a noisy machine."""
