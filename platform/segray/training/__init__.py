"""Fitting a Config on a Ray cluster: `segray.training.fit.fit`.

Nothing is imported here: every process of a run imports what it needs, and no more.
"""
