"""Training of a Config on a Ray cluster; the entry point is `segray.training.fit.fit`.

This module imports nothing, so that each process of a run imports only the modules that it needs.
"""
