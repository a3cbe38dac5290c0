"""What a source hands to the conversion: samples that can be read anywhere, and what their ids mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.core.classes import Classes

Ids = NDArray[np.uint8] | NDArray[np.uint16]
Encoded = bytes | Ids
"""A mask: an image file's bytes, of one channel; or its ids (H, W), where they are made of something else."""

Json = dict[str, Any]

UNSPLIT = "all"
"""The split of a source that knows none."""


@dataclass(frozen=True)
class SourceSample:
    """One image and its mask, not yet read.

    Attributes:
        split: name of the split (train, val, test ...).
        id: unique in the dataset, stable across conversions: `split/stem`.
        image, mask: what messages call the two, e.g. their paths.
        size_bytes: encoded size of both, as far as known without reading; only balances the shards.
        read_image, read_mask: return what is stored; picklable, because another process calls them.
            They raise DataError when there is nothing to read.
        version: changes when what is read does, e.g. size and time of the files.
        columns: further facts by name, such as its city.
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
    """Everything a source holds.

    Attributes:
        samples: split after split, in a fixed order.
        classes: names and palette where the source knows them.
        lookup: from an id in its masks to that of the class, or to none where it is not counted; ids that do not
            stand here are errors. Without it, an id is its own class's.
        absent_ok: whether a class may occur in no mask; where ids come from a list of names, one too many is a mistake.
        problems: a line for each file that does not fit, such as an image without a mask.
    """

    samples: tuple[SourceSample, ...]
    classes: Classes | None
    lookup: Mapping[int, int | None] | None = None
    absent_ok: bool = False
    problems: tuple[str, ...] = ()
