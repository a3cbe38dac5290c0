"""Speed of a loaded model on this machine, and the largest image that it segments in a given time."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from time import perf_counter

SAFETY = 2.0
"""Factor by which the estimate of a request may be too low, because other requests use the machine as well."""
NUM_TRIALS = 2
SIDE_STEP = 64


@dataclass(frozen=True)
class Speed:
    """Measured duration of the segmentation of an image, as a function of its number of pixels.

    The attention of SegFormer makes the duration a polynomial of second degree.

    Attributes:
        linear: seconds per pixel.
        quadratic: seconds per squared pixel.
    """

    linear: float
    quadratic: float = 0.0

    @classmethod
    def fit(cls, pixels: int, seconds: float, more_pixels: int, more_seconds: float) -> "Speed":
        """Returns the speed that agrees with two measurements, the second one with more pixels."""
        rate, more_rate = seconds / pixels, more_seconds / more_pixels
        quadratic = max(0.0, (more_rate - rate) / (more_pixels - pixels))
        return cls(max(rate - quadratic * pixels, 0.0), quadratic)

    def seconds(self, pixels: int) -> float:
        """Returns the estimated duration in seconds."""
        return self.linear * pixels + self.quadratic * pixels**2


@dataclass(frozen=True)
class ModelSpeed:
    """Measured speed of a version.

    Attributes:
        codec: decoding and encoding an image.
        forward: forward pass of a whole image.
        window_s: duration of the forward pass of one sliding window in seconds.
        smallest_s: duration of the forward pass of the smallest image in seconds.
    """

    codec: Speed
    forward: Speed
    window_s: float
    smallest_s: float


def measure_seconds(call: Callable[[], object]) -> float:
    """Returns the shortest duration of a few calls in seconds."""
    durations = []
    for _ in range(NUM_TRIALS):
        started_at = perf_counter()
        call()
        durations.append(perf_counter() - started_at)
    return min(durations)


def find_max_pixels(seconds: Callable[[int], float], timeout_s: float, limit: int) -> int:
    """Returns the number of pixels up to which every square image takes less than `timeout_s`, or `limit`.

    Args:
        seconds: function that estimates the duration for the side of a square image.
        timeout_s: timeout of a request in seconds.
        limit: maximum number of pixels.
    """
    largest = 0
    for side in range(SIDE_STEP, isqrt(limit) + SIDE_STEP, SIDE_STEP):
        if seconds(side) * SAFETY > timeout_s:
            return largest
        largest = side**2
    return limit
