"""The formats that a dataset can be converted from, one file each; a source lists samples and reads none."""

from collections.abc import Callable

from segray.data.sources import demo, folder
from segray.data.sources.sample import Found, Sample

__all__ = ["SOURCES", "Found", "Sample"]

SOURCES: dict[str, Callable[[str | None], Found]] = {
    "demo": demo.find,
    "folder": folder.find,
}
