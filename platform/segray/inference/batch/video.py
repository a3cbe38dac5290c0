"""The frames of a video."""

from dataclasses import dataclass
from math import ceil

import cv2
from pyarrow.fs import FileInfo

from segray.core.errors import DataError
from segray.data.storage import strip_credentials
from segray.inference.batch.inputs import Chunks, InputImage

PART_FRAMES = 8  # which travel as they are, without being encoded
FRAMES_OFF = 0.01
"""A video may have fewer frames than it says by this share: of some kinds the count is an estimate."""


@dataclass(frozen=True)
class VideoShard:
    """The frames of a video, on a path that every node sees.

    Attributes:
        path: of the file.
        images: frames it says it has.
        version: changes with the file.
    """

    path: str
    images: int
    version: str

    @property
    def num_chunks(self) -> int:
        """How many parts there are, if it has the frames it says it has."""
        return ceil(self.images / PART_FRAMES)

    @property
    def is_length_known(self) -> bool:
        """No: that is known at its end."""
        return False

    def chunks(self, done: frozenset[int]) -> Chunks:
        """Yields the parts that are not done; the frames of the others are passed over."""
        capture = cv2.VideoCapture(self.path)
        number, frames, part = 0, 0, list[InputImage]()
        while capture.grab():
            number, place_ = divmod(frames, PART_FRAMES)
            if number not in done:
                part.append(InputImage(f"frame-{frames:06d}", _lossless(capture)))
            frames += 1
            if part and place_ == PART_FRAMES - 1:
                yield number, part
                part = []
        if part:
            yield number, part
        number = ceil(frames / PART_FRAMES)  # a part of its own, behind the last
        if frames < self.images * (1 - FRAMES_OFF) - 1 and number not in done:
            problem = f"{self.path} says it has {self.images} frames, of which {frames} can be read"
            yield number, [InputImage(f"frame-{frames:06d}", b"", problem)]


def _lossless(capture: cv2.VideoCapture) -> bytes:
    """Returns the frame that was grabbed, as the format that takes no time to write or read."""
    encoded: bytes = cv2.imencode(".bmp", capture.retrieve()[1])[1].tobytes()
    return encoded


def open_video(source: str, info: FileInfo) -> VideoShard:
    """Returns a video.

    Raises:
        DataError: it cannot be read, or lies in a store.
    """
    if "://" in source:
        raise DataError(
            f"source {strip_credentials(source)} is a video in a store; expected one on a path; copy it first."
        )
    capture = cv2.VideoCapture(info.path)
    if not capture.isOpened() or not capture.grab():
        raise DataError(f"source {info.path} cannot be read as a video; convert it, e.g. with ffmpeg.")
    images = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    return VideoShard(info.path, images, f"{info.path} {info.size} {info.mtime_ns}")
