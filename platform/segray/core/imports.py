"""What a user brings along: a class or function of a module of their own, named by `module:attribute`."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from segray.core.errors import UserError


def is_import_path(name: str) -> bool:
    """Returns whether a name has the form `module:attribute`."""
    return ":" in name


def import_callable(setting: str, reference: str, error: type[UserError]) -> Callable[..., Any]:
    """Returns the callable that a `module:attribute` names.

    Args:
        setting: where it stands, for the message.
        reference: the name.
        error: what is raised.

    Raises:
        UserError: the module cannot be imported, or has no such attribute, or that is not callable.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        found = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as cause:
        raise error(
            f"{setting} is {reference!r}, which cannot be imported ({cause}); expected module:attribute "
            "of a module on the Python path."
        ) from cause
    if not callable(found):
        raise error(f"{setting} is {reference!r}, a {type(found).__name__}; expected a class or a function.")
    return found  # type: ignore[no-any-return]
