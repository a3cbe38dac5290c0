"""Imports of user-defined classes and functions, named by `module:attribute`."""

from collections.abc import Callable
from importlib import import_module
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
