"""Import paths of earlier releases. Importing one raises an error that names the new path."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

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
