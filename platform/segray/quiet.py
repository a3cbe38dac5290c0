"""Keeps libraries from talking over our own lines; their logs stay in Ray's session folder."""

import logging

LEVELS = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # warns that its bars are off, which we asked for
    "ray.train": logging.WARNING,
    "ray._private.authentication": logging.ERROR,  # warns that token authentication is on
    "alembic": logging.WARNING,
    "mlflow": logging.WARNING,
}


def quieten() -> None:
    """Sets the levels in this process; to be called in every process that uses these libraries."""
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
