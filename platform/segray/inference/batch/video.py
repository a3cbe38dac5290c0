"""The frames of a video."""

import platform
from dataclasses import dataclass
from math import ceil

import cv2
from pyarrow.fs import FileInfo

from segray.core.errors import DataError
from segray.data.storage import strip_credentials
from segray.inference.batch.inputs import Chunks, InputImage

CHUNK_FRAMES = 8  # small, because frames are transferred uncompressed
MISSING_FRAMES_TOLERANCE = 0.01
"""Tolerated fraction of missing frames, because some formats only estimate the number of frames."""


@dataclass(frozen=True)
class VideoShard:
    """The frames of a video, on a path that all nodes can read.

    Attributes:
        path: path of the file.
        images: number of frames according to the video's metadata.
        version: version that changes with the file.
    """

    path: str
    images: int
    version: str

    @property
    def num_chunks(self) -> int:
        """Number of chunks according to the video's metadata."""
        return ceil(self.images / CHUNK_FRAMES)

    @property
    def is_length_known(self) -> bool:
        """Whether the number of frames is known, always False: it is known only at the end of the video."""
        return False

    def chunks(self, done: frozenset[int]) -> Chunks:
        """Yields the chunks that are not done and skips the frames of the others.

        Raises:
            DataError: the video cannot be opened on this node.
        """
        capture = cv2.VideoCapture(self.path)
        if not capture.isOpened():  # it was opened when the job started
            raise DataError(
                f"{self.path} cannot be opened on {platform.node()}; expected a path that all nodes can read; the same "
                "command resumes the job."
            )
        number, num_frames, chunk = 0, 0, list[InputImage]()
        while capture.grab():
            number, index = divmod(num_frames, CHUNK_FRAMES)
            if number not in done:
                chunk.append(InputImage(f"frame-{num_frames:06d}", _lossless(capture)))
            num_frames += 1
            if chunk and index == CHUNK_FRAMES - 1:
                yield number, chunk
                chunk = []
        if chunk:
            yield number, chunk
        number = ceil(num_frames / CHUNK_FRAMES)  # an additional chunk, after the last one
        if num_frames < self.images * (1 - MISSING_FRAMES_TOLERANCE) - 1 and number not in done:
            problem = f"{self.path}: only {num_frames} of {self.images} frames can be read"
            yield number, [InputImage(f"frame-{num_frames:06d}", b"", problem)]


def _lossless(capture: cv2.VideoCapture) -> bytes:
    """Returns the current frame as BMP, which is fast to encode and decode."""
    encoded: bytes = cv2.imencode(".bmp", capture.retrieve()[1])[1].tobytes()
    return encoded


def open_video(source: str, info: FileInfo) -> VideoShard:
    """Opens a video.

    Raises:
        DataError: the video cannot be read, or its source is an object store.
    """
    if "://" in source:
        raise DataError(
            f"source {strip_credentials(source)} is a video in an object store; expected a local path; "
            "copy the video first."
        )
    capture = cv2.VideoCapture(info.path)
    if not capture.isOpened() or not capture.grab():
        raise DataError(f"source {info.path} is not a readable video; convert it, for example with ffmpeg.")
    images = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    return VideoShard(info.path, images, f"{info.path} {info.size} {info.mtime_ns}")
