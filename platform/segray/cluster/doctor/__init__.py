"""Checks of a cluster against the requirements of a Config, before a run and in the command `doctor`."""
