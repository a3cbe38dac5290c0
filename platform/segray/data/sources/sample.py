"""What a source hands to the conversion: samples that can be read anywhere, and what their ids mean."""

from collections.abc import Callable
from dataclasses import dataclass

from segray.classes import Classes


@dataclass(frozen=True)
class Sample:
    """One image and its mask, not yet read.

    Attributes:
        split: name of the split (train, val, test ...).
        id: unique in the dataset, stable across conversions: `split/stem`.
        image, mask: what messages call the two, e.g. their paths.
        size_bytes: encoded size of both, as far as known without reading; only balances the shards.
        read_image, read_mask: return the encoded bytes; picklable, because another process calls them.
            They raise DataError when there is nothing to read.
    """

    split: str
    id: str
    image: str
    mask: str
    size_bytes: int
    read_image: Callable[[], bytes]
    read_mask: Callable[[], bytes]


@dataclass(frozen=True)
class Found:
    """Everything a source holds.

    Attributes:
        samples: split after split, in a fixed order.
        classes: names and palette where the source knows them.
    """

    samples: tuple[Sample, ...]
    classes: Classes | None
