"""Errors, class names, signals, logging, HTML and plots. All other packages may import this package."""
