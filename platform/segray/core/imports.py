"""Imports of user-defined classes and functions, and of modules that have moved."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from segray.core.errors import UserError


def is_import_path(name: str) -> bool:
    """Returns True if a name has the form `module:attribute`."""
    return ":" in name


def import_callable(setting: str, reference: str, error: type[UserError]) -> Callable[..., Any]:
    """Imports a callable.

    Args:
        setting: name of the setting, for the error message.
        reference: name of the callable, `module:attribute`.
        error: class of the raised error.

    Raises:
        UserError: the module cannot be imported, it lacks the attribute, or the attribute is not callable.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        imported = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as cause:
        raise error(
            f"{setting} is {reference!r}, which cannot be imported ({cause}); expected module:attribute "
            "of a module on the Python path."
        ) from cause
    if not callable(imported):
        raise error(f"{setting} is {reference!r}, a {type(imported).__name__}; expected a class or a function.")
    return imported  # type: ignore[no-any-return]


MOVED = {
    "segray.analysis": "segray.training.preview, segray.models.cost and segray.tracking.curves",
    "segray.benchmark": "the package benchmarks beside the library",
    "segray.checkpoint": "segray.models.checkpoint",
    "segray.classes": "segray.core.classes",
    "segray.data.plan": "segray.data.sampler",
    "segray.data.schema": "segray.data.manifest and segray.data.storage",
    "segray.data.stream": "segray.data.loader",
    "segray.errors": "segray.core.errors",
    "segray.evaluate": "segray.evaluation.evaluate",
    "segray.losses": "segray.training.losses.build",
    "segray.metrics": "segray.evaluation.metrics",
    "segray.model": "segray.models",
    "segray.places": "segray.config.paths",
    "segray.registry": "segray.tracking.registry",
    "segray.train": "segray.training",
}
"""New import path by old import path. `docs/renames.md` lists all names."""


class _MovedFinder(MetaPathFinder):
    """Last finder on the path: it is called only for modules that no other finder knows."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in MOVED:
            raise ModuleNotFoundError(f"{fullname} is now {MOVED[fullname]}; see docs/renames.md.", name=fullname)
        return None


def explain_moved_imports() -> None:
    """Adds the finder to `sys.meta_path`, once."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
