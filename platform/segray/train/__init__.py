"""Fitting a Config on a Ray cluster."""

from segray.train.fit import Result, fit

__all__ = ["Result", "fit"]
