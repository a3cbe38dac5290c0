"""Outputs of a prediction: files, or rows of parquet tables.

masks/NAME.png            class ids as a palette PNG (16-bit greyscale from 256 classes on)
overlays/NAME.jpg         image with the colours of the classes drawn over it
probabilities/NAME.npy    (K, H, W) float16
part-SHARD-CHUNK.parquet  replaces all of the above: columns id, height, width, mask, overlay, probabilities
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pyarrow.fs import FileSystem, LocalFileSystem

from segray.core.classes import Classes
from segray.core.visualize import draw_overlay
from segray.data.images import Mask, Pixels, encode_mask
from segray.data.storage import filesystem, translate_write_errors, write_atomic

FORMATS = ("png", "parquet")
MASK, OVERLAY, PROBABILITIES = "mask", "overlay", "probabilities"
KINDS = {MASK: ("masks", ".png"), OVERLAY: ("overlays", ".jpg"), PROBABILITIES: ("probabilities", ".npy")}
"""Kinds of output of an image: folder and suffix."""
JPEG_QUALITY = 90
Key = tuple[int, int]
"""Key of a chunk: the index of its shard and its number in the shard."""


@dataclass(frozen=True)
class ImageOutput:
    """The outputs of one image.

    Attributes:
        name: relative name, without a suffix.
        height, width: size in px.
        contents: encoded bytes by kind, as in KINDS.
    """

    name: str
    height: int
    width: int
    contents: dict[str, bytes]


@dataclass(frozen=True)
class Outputs:
    """A folder or bucket of predictions.

    Attributes:
        root: absolute path or URI.
        classes: classes of the model.
        format: output format, one of FORMATS.
        overlay: whether the image with the mask drawn over it is also written.
        probabilities: whether the probabilities of all classes are also written.
    """

    root: str
    classes: Classes
    format: str = "png"
    overlay: bool = False
    probabilities: bool = False

    def encode(
        self, name: str, image: Pixels, mask: Mask, probabilities: NDArray[np.float32] | None = None
    ) -> ImageOutput:
        """Returns the encoded outputs of an image.

        Args:
            name: name of the results.
            image: (H, W, 3) uint8 RGB.
            mask: (H, W) class ids.
            probabilities: (K, H, W), if they are requested.
        """
        # Tables store masks in the dataset format, because the dataset reader does not support palettes.
        contents = {MASK: encode_mask(mask) if self.format == "parquet" else palette_png(mask, self.classes)}
        if self.overlay:
            contents[OVERLAY] = _jpeg(draw_overlay(image, mask, self.classes))
        if probabilities is not None:
            contents[PROBABILITIES] = _npy(probabilities)
        return ImageOutput(name, mask.shape[0], mask.shape[1], contents)

    def write(self, name: str, results: Iterable[ImageOutput]) -> int:
        """Writes the results of a chunk as they arrive and returns their number.

        Args:
            name: name of the chunk's table, without a suffix.
            results: results of the chunk's images.

        Raises:
            DataError: the results cannot be written.
        """
        with translate_write_errors(self.root):
            return self._write_table(name, results) if self.format == "parquet" else self._write_files(results)

    def _write_files(self, results: Iterable[ImageOutput]) -> int:
        fs, root = filesystem(self.root)
        count = 0
        for result in results:
            count += 1
            for kind, content in result.contents.items():
                folder, suffix = KINDS[kind]
                write_file(fs, f"{root}/{folder}/{result.name}{suffix}", content)
        return count

    def _write_table(self, name: str, results: Iterable[ImageOutput]) -> int:
        buffer, count = io.BytesIO(), 0
        with pq.ParquetWriter(buffer, self._schema) as writer:
            for result in results:  # one row group per image, because probabilities are large
                row = {"id": result.name, "height": result.height, "width": result.width, **result.contents}
                count += 1
                writer.write_table(pa.Table.from_pylist([row], schema=self._schema))
        fs, root = filesystem(self.root)
        write_file(fs, f"{root}/{name}.parquet", buffer.getvalue())
        return count

    @property
    def _schema(self) -> pa.Schema:
        kinds = [MASK, *[OVERLAY] * self.overlay, *[PROBABILITIES] * self.probabilities]
        sides = [("height", pa.int32()), ("width", pa.int32())]
        return pa.schema([("id", pa.string()), *sides, *((kind, pa.binary()) for kind in kinds)])


def write_file(fs: FileSystem, path: str, content: bytes) -> None:
    """Writes a file and, on a local file system, creates its parent folders."""
    if isinstance(fs, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(fs, path, content)


def format_key(key: Key) -> str:
    """Returns a chunk's key in the form used in file names."""
    return f"{key[0]:06d}-{key[1]:04d}"


def palette_png(mask: Mask, classes: Classes) -> bytes:
    """Returns class ids (H, W) as a palette PNG, or as a 16-bit greyscale PNG if a palette is too small."""
    if mask.dtype == np.uint16:
        return encode_mask(mask)
    image = Image.fromarray(mask, mode="P")
    image.putpalette([channel for colour in classes.palette for channel in colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _npy(probabilities: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, probabilities.astype(np.float16))
    return buffer.getvalue()
