"""Errors, class names, signals, logging, HTML and plots: what every other package may import."""
