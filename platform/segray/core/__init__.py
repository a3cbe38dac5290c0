"""Errors, class names, numbers, signals, logging, HTML and plots. All other packages may import this package."""
