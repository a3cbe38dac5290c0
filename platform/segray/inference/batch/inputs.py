"""Inputs of a batch job: shards, each read by one task and divided into chunks of a few images.

A chunk is the unit of writing. After an interruption, an unfinished chunk is processed again in full.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from segray.data.storage import content_hash

CHUNK_IMAGES = 16


@dataclass(frozen=True)
class InputImage:
    """An image to be segmented.

    Attributes:
        name: name of the results, relative and without a suffix.
        encoded: encoded bytes; empty if the image could not be read.
        problem: reason why the image could not be read.
    """

    name: str
    encoded: bytes
    problem: str = ""


Chunk = list[InputImage]
Chunks = Iterator[tuple[int, Chunk]]


class InputShard(Protocol):
    """The input of one read task.

    Attributes:
        version: digest that changes with the content of the shard.
        images: number of images, as far as it is known.
        num_chunks: number of chunks, as far as it is known.
        is_length_known: whether these numbers are known.
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
        """Yields the numbers and the images of the chunks that are not done.

        Raises:
            DataError: the shard cannot be read.
        """


@dataclass(frozen=True)
class Inputs:
    """The inputs of a job.

    Attributes:
        location: path or URI of the source, without credentials.
        shards: shards of the source.
        are_normalized: whether images have the dataset format: upright, 8 bits, no alpha channel.
        num_skipped: number of files that are not images.
        is_single: whether the source is a single image.
    """

    location: str
    shards: Sequence[InputShard]
    are_normalized: bool
    num_skipped: int = 0
    is_single: bool = False

    @property
    def images(self) -> int:
        """Number of images, as far as it is known."""
        return sum(shard.images for shard in self.shards)

    @property
    def version(self) -> str:
        """Digest that changes with the source."""
        return content_hash(*(shard.version.encode() for shard in self.shards))
