"""Measurements side by side: two contenders take turns in one run, so that their ratio survives a noisy machine."""
