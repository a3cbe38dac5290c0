"""All readers of a stranger's bytes, by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import checkpoints, datasets, serving, sources
from .reader import Reader

READERS: dict[str, Reader] = {**sources.READERS, **checkpoints.READERS, **datasets.READERS, **serving.READERS}


@contextmanager
def start_group(group: str, folder: Path, database: Path | None = None) -> Iterator[None]:
    """Starts what the readers of a group need, below a folder; the database is that of `running_service`."""
    if group == "http":
        with serving.running_service(folder / "service", database):
            yield
    else:
        datasets.predictor()  # what several inputs share is made before the first of them
        datasets.dataset_content()
        datasets.video()
        yield
