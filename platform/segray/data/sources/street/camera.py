"""Pinhole camera above a road, and drawing of polygons in metres into pixels and class ids."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segray.core.classes import Colour

HEIGHT, WIDTH = 144, 192
# Supersampling factor. It smooths edges and detects pixels that cover two classes.
FINE = 2
FAR_M = 90.0

PALETTE: dict[str, Colour] = {
    "sky": (70, 130, 180),
    "building": (90, 80, 80),
    "road": (128, 64, 128),
    "pavement": (244, 35, 232),
    "vegetation": (107, 142, 35),
    "car": (0, 60, 160),
    "person": (220, 20, 60),
    "sign": (220, 220, 0),
}
SKY, BUILDING, ROAD, PAVEMENT, VEGETATION, CAR, PERSON, SIGN = range(len(PALETTE))

Paint = NDArray[np.float64]
Point = tuple[float, float, float]

GREYS = np.array([(150, 148, 145), (112, 110, 110), (188, 184, 178), (84, 86, 92)], np.float64)
DARK = np.array([(84, 86, 92), (66, 76, 92), (44, 46, 52)], np.float64)


@dataclass
class StreetScene:
    """A street and its image at twice the final size.

    Attributes:
        rng: random generator; the only source of randomness.
        pixels: image, (2H, 2W, 3) uint8 RGB.
        ids: class ids, (2H, 2W) uint8.
        focal, centre_x, horizon_y: camera parameters in pixels; the camera looks straight ahead.
        eye_m: height of the camera above the road in metres.
        kerb_m, wall_m: distance of the kerbs and of the houses from the middle of the road in metres.
    """

    rng: np.random.Generator
    pixels: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    focal: float
    centre_x: float
    horizon_y: float
    eye_m: float
    kerb_m: float
    wall_m: float

    def project(self, points: Sequence[Point] | NDArray[np.float64]) -> NDArray[np.int32]:
        """Projects points (..., 3), in metres right, up from the road and ahead, to pixels (..., 2)."""
        metres = np.asarray(points, np.float64)
        scale = self.focal / metres[..., 2:]
        pixels = (metres[..., :2] - (0, self.eye_m)) * (1, -1) * scale + (self.centre_x, self.horizon_y)
        # OpenCV's polygon coordinates overflow far outside the image.
        return np.rint(np.clip(pixels, -9999, 9999)).astype(np.int32)

    def fill(self, points: Sequence[Point], colour: Paint, class_id: int | None = None) -> None:
        """Fills a convex polygon; without a class id, the ids are not changed, for example for a window."""
        corners = self.project(points)
        cv2.fillConvexPoly(self.pixels, corners, _rgb(colour))
        if class_id is not None:
            cv2.fillConvexPoly(self.ids, corners, class_id)

    def tile(self, polygons: Iterable[Sequence[Point]], colour: Paint) -> None:
        """Fills many non-overlapping polygons with the same number of corners; the ids are not changed."""
        corners = np.array(list(polygons), np.float64)
        if len(corners):
            cv2.fillPoly(self.pixels, list(self.project(corners)), _rgb(colour))

    def ball(self, centre: Point, radius_m: float, colour: Paint, class_id: int) -> None:
        """Fills the projection of a ball."""
        x, y = self.project([centre])[0].tolist()
        radius_px = max(1, round(self.focal * radius_m / centre[2]))
        cv2.circle(self.pixels, (x, y), radius_px, _rgb(colour), -1)
        cv2.circle(self.ids, (x, y), radius_px, class_id, -1)

    def vary_colour(self, colours: Paint, spread: float = 14) -> Paint:
        """Samples one of the colours and adds a small random offset."""
        colour: Paint = self.rng.choice(colours) + self.rng.normal(0, spread, 3)
        return colour


def empty_street(rng: np.random.Generator) -> StreetScene:
    """Returns an empty street with random width and camera."""
    height, width = HEIGHT * FINE, WIDTH * FINE
    kerb_m = rng.uniform(2.6, 4.2)
    return StreetScene(
        rng=rng,
        pixels=np.zeros((height, width, 3), np.uint8),
        ids=np.zeros((height, width), np.uint8),
        focal=width * rng.uniform(0.6, 0.85),
        centre_x=width * rng.uniform(0.25, 0.75),
        horizon_y=height * rng.uniform(0.3, 0.6),
        eye_m=rng.uniform(1.4, 2.2),
        kerb_m=kerb_m,
        wall_m=kerb_m + rng.uniform(3, 6),
    )


def ground_rect(left: float, right: float, near: float, far: float) -> list[Point]:
    """Returns the corners of a rectangle on the ground."""
    return [(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)]


def facing_rect(left: float, right: float, bottom: float, top: float, ahead: float) -> list[Point]:
    """Returns the corners of an upright rectangle that faces the camera."""
    return [(left, bottom, ahead), (left, top, ahead), (right, top, ahead), (right, bottom, ahead)]


def side_rect(right: float, bottom: float, top: float, near: float, far: float) -> list[Point]:
    """Returns the corners of an upright rectangle along the street."""
    return [(right, bottom, near), (right, top, near), (right, top, far), (right, bottom, far)]


def trapezium(ahead: float, bottom: Point, top: Point) -> list[Point]:
    """Returns the corners of an upright trapezium; `bottom` and `top` are (left, right, up)."""
    return [
        (bottom[0], bottom[2], ahead),
        (top[0], top[2], ahead),
        (top[1], top[2], ahead),
        (bottom[1], bottom[2], ahead),
    ]


def _rgb(colour: Paint) -> list[int]:
    values: list[int] = colour.clip(0, 255).astype(int).tolist()
    return values
