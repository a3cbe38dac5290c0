"""Interface between sources and the conversion: samples that any process can read, and the meaning of mask ids."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.core.classes import Classes

Ids = NDArray[np.uint8] | NDArray[np.uint16]
Encoded = bytes | Ids
"""A mask: the bytes of a one-channel image file, or the ids (H, W) if the mask is made from something else."""

Json = dict[str, Any]

UNSPLIT = "all"
"""Name of the split of a source without splits."""


@dataclass(frozen=True)
class SourceSample:
    """One image and its mask, not yet read.

    Attributes:
        split: name of the split (train, val, test ...).
        id: id that is unique in the dataset and stable across conversions, `split/stem`.
        image, mask: names of the image and the mask in messages, for example their paths.
        size_bytes: encoded size of both, as far as it is known without reading; used only to balance the shards.
        read_image, read_mask: picklable functions that return the stored form; other processes call them. They raise
            DataError if there is nothing to read.
        version: text that changes when the data changes, for example size and time of the files.
        columns: additional columns by name, such as the city.
    """

    split: str
    id: str
    image: str
    mask: str
    size_bytes: int
    read_image: Callable[[], bytes]
    read_mask: Callable[[], Encoded]
    version: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceListing:
    """All samples of a source, and the meaning of its mask ids.

    Attributes:
        samples: samples in a fixed order, split after split.
        classes: names and palette, or `None` if the source does not define them.
        lookup: class of each mask id, or `None` for an ignored id; ids that are not listed are errors. Defaults to
            `None`, which uses each class index as its id.
        absent_ok: `True` if a class may be absent from all masks. It is `False` for ids from a list of names, where an
            extra name is a mistake.
        problems: one line for each file that cannot be used, such as an image without a mask.
    """

    samples: tuple[SourceSample, ...]
    classes: Classes | None
    lookup: Mapping[int, int | None] | None = None
    absent_ok: bool = False
    problems: tuple[str, ...] = ()
