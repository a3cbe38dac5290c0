"""What is to be segmented: units, each read by one task, cut into parts of some images.

A part is what is written or, after a kill, done again as a whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from segray.data.storage import content_hash

PART_IMAGES = 16


@dataclass(frozen=True)
class InputImage:
    """An image to be segmented.

    Attributes:
        name: of its results, relative and without a suffix.
        encoded: its bytes; none where they could not be read.
        problem: why not.
    """

    name: str
    encoded: bytes
    problem: str = ""


Chunk = list[InputImage]
Chunks = Iterator[tuple[int, Chunk]]


class InputShard(Protocol):
    """What one task reads.

    Attributes:
        version: changes with what it reads.
        images: how many there are, as far as that is known.
        num_chunks: how many parts there are, as far as that is known.
        is_length_known: whether that is known.
    """

    @property
    def version(self) -> str: ...
    @property
    def images(self) -> int: ...
    @property
    def num_chunks(self) -> int: ...
    @property
    def is_length_known(self) -> bool: ...
    def chunks(self, done: frozenset[int]) -> Chunks:
        """Yields the parts that are not done, with their numbers.

        Raises:
            DataError: there is nothing to be read.
        """


@dataclass(frozen=True)
class Inputs:
    """What is to be segmented.

    Attributes:
        place: the source, for people.
        units: of it.
        are_normalized: whether images are as a dataset stores them: upright, of 8 bits, without alpha.
        num_skipped: files that are no images.
        is_single: whether one image was named.
    """

    place: str
    units: Sequence[InputShard]
    are_normalized: bool
    num_skipped: int = 0
    is_single: bool = False

    @property
    def images(self) -> int:
        """How many there are, as far as that is known."""
        return sum(unit.images for unit in self.units)

    @property
    def version(self) -> str:
        """Changes with the source."""
        return content_hash(*(unit.version.encode() for unit in self.units))
