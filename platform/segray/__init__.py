"""SegFormer on Ray: train, tune, ship and serve semantic segmentation."""

from typing import TYPE_CHECKING, Any

from segray.core.imports import explain_moved_imports

if TYPE_CHECKING:
    from segray.tracking.references import ReferencePredictor as Predictor

__all__ = ["Predictor"]

explain_moved_imports()


def __getattr__(name: str) -> Any:
    """Imports what is asked for then: torch takes a second, and not every command needs it."""
    if name != "Predictor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from segray.tracking.references import ReferencePredictor as Predictor  # noqa: PLC0415

    return Predictor
