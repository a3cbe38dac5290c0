"""Drawings of streets: a small three-dimensional street seen through a pinhole camera, painted far to near.

Colours overlap between the classes on purpose (grey is sky, house, road, pavement and car alike, and the light
changes from picture to picture); what tells them apart is shape, texture and what stands next to what.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segray.classes import Colour

HEIGHT, WIDTH = 144, 192
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
MIXED = 255

# Drawn at twice the size, so that edges are smooth and pixels of two classes are known.
_FINE = 2
_FAR_M = 90.0
_URBAN = np.array(
    [
        (150, 148, 145), (108, 106, 108), (188, 184, 178), (84, 86, 92), (158, 104, 84), (190, 160, 120),
        (120, 134, 156), (66, 92, 140), (160, 52, 46), (206, 196, 172), (96, 116, 88), (52, 54, 60),
    ],
    np.float64,
)  # fmt: skip
_LEAVES = np.array([(74, 104, 52), (96, 116, 60), (56, 84, 54), (140, 122, 58), (150, 98, 56)], np.float64)
_SKIES = np.array([(126, 160, 200), (176, 180, 184), (206, 206, 206), (198, 160, 136), (110, 120, 148)], np.float64)
# Gains of red, green, blue: noon, overcast, low sun, dusk, sodium lamps.
_LIGHTS = np.array([(1, 1, 1), (0.88, 0.92, 0.98), (1.12, 0.98, 0.8), (0.62, 0.66, 0.86), (0.8, 0.66, 0.46)])
# Strength of fine, middle and coarse noise on each class.
_GRAIN = np.array([(0, 1, 6), (3, 2, 4), (9, 3, 5), (4, 5, 5), (8, 15, 9), (1, 1, 3), (2, 4, 3), (1, 1, 2)], np.float32)

Point = tuple[float, float, float]


@dataclass
class Street:
    """A picture in the making, at twice its size.

    Attributes:
        rng: the only source of chance.
        pixels: (2H, 2W, 3) uint8 RGB.
        ids: (2H, 2W) uint8 class ids.
        focal, centre_x, horizon_y, eye_m: the camera: pixels, pixels, pixels, metres above the road.
        kerb_m, wall_m: distance of the kerbs and of the walls from the middle of the road.
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

    def project(self, points: Sequence[Point]) -> NDArray[np.int32]:
        """Returns the (N, 2) pixels of points (metres right, up from the road, and ahead)."""
        right, up, ahead = np.asarray(points, np.float64).T
        x = self.centre_x + self.focal * right / ahead
        y = self.horizon_y + self.focal * (self.eye_m - up) / ahead
        return np.clip(np.stack([x, y], axis=1), -9999, 9999).round().astype(np.int32)

    def fill(self, points: Sequence[Point], colour: NDArray[np.float64], class_id: int | None = None) -> None:
        """Paints a convex polygon; without a class the ids below stay, as for a window or a shadow."""
        corners = self.project(points)
        cv2.fillConvexPoly(self.pixels, corners, _rgb(colour))
        if class_id is not None:
            cv2.fillConvexPoly(self.ids, corners, class_id)

    def disc(self, centre: Point, radius_m: float, colour: NDArray[np.float64], class_id: int | None) -> None:
        """Paints a ball."""
        x, y = self.project([centre])[0].tolist()
        radius = max(1, round(self.focal * radius_m / centre[2]))
        cv2.circle(self.pixels, (x, y), radius, _rgb(colour), -1)
        if class_id is not None:
            cv2.circle(self.ids, (x, y), radius, class_id, -1)

    def pick(self, colours: NDArray[np.float64], spread: float = 14) -> NDArray[np.float64]:
        """Returns one of the colours, a little changed."""
        colour: NDArray[np.float64] = self.rng.choice(colours) + self.rng.normal(0, spread, 3)
        return colour


def draw(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns a picture (H, W, 3) uint8 RGB and its class ids (H, W) uint8, 255 where two classes share a pixel."""
    street = _empty_street(rng)
    _paint_sky(street)
    _paint_ground(street)
    # The farthest first: what is nearer hides it.
    for _, paint in sorted([*_walls(street), *_things(street)], key=lambda thing: -thing[0]):
        paint()
    pixels = _lit(street, _grained(street))
    small = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    small += rng.normal(0, 2.5, small.shape)
    return np.clip(small, 0, 255).astype(np.uint8), _small_ids(street.ids)


def _rgb(colour: NDArray[np.float64]) -> list[int]:
    values: list[int] = np.clip(colour, 0, 255).astype(int).tolist()
    return values


def _empty_street(rng: np.random.Generator) -> Street:
    height, width = HEIGHT * _FINE, WIDTH * _FINE
    kerb_m = rng.uniform(3.2, 5.5)
    return Street(
        rng=rng,
        pixels=np.zeros((height, width, 3), np.uint8),
        ids=np.zeros((height, width), np.uint8),
        focal=width * rng.uniform(0.6, 0.85),
        centre_x=width * rng.uniform(0.25, 0.75),
        horizon_y=height * rng.uniform(0.3, 0.6),
        eye_m=rng.uniform(1.4, 2.2),
        kerb_m=kerb_m,
        wall_m=kerb_m + rng.uniform(2.2, 5),
    )


def _paint_sky(street: Street) -> None:
    height = len(street.pixels)
    top, bottom = street.pick(_SKIES, 10), street.pick(_SKIES, 10)
    share = np.linspace(0, 1, height)[:, None, None]
    street.pixels[:] = np.clip(top * (1 - share) + bottom * share, 0, 255)
    street.ids[:] = SKY


def _paint_ground(street: Street) -> None:
    rng = street.rng
    grey = street.pick(_URBAN[[0, 1, 2, 3]], 8)
    slabs = street.pick(_URBAN[[0, 1, 2, 3, 5]], 8)
    _strip(street, -400, 400, slabs, PAVEMENT)
    _paint_slabs(street, slabs)
    for side in (-1, 1):
        if rng.random() < 0.35:
            _strip(street, side * (street.wall_m - 1.2), side * 60, street.pick(_LEAVES), VEGETATION)
    _strip(street, -street.kerb_m, street.kerb_m, grey, ROAD)
    _strip(street, -street.kerb_m - 0.2, -street.kerb_m, slabs * 0.7, PAVEMENT)
    _strip(street, street.kerb_m, street.kerb_m + 0.2, slabs * 0.7, PAVEMENT)
    paint = np.full(3, rng.uniform(170, 225))
    for start in np.arange(rng.uniform(1.5, 4), 60, 6):
        street.fill(_flat(-0.09, 0.09, start, start + 3), paint)
    if rng.random() < 0.35:
        start = rng.uniform(4, 12)
        for x in np.arange(-street.kerb_m + 0.3, street.kerb_m - 0.5, 1.1):
            street.fill(_flat(x, x + 0.55, start, start + 3), paint)


def _flat(left: float, right: float, near: float, far: float) -> list[Point]:
    return [(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)]


def _strip(street: Street, left: float, right: float, colour: NDArray[np.float64], class_id: int) -> None:
    street.fill(_flat(left, right, 0.8, _FAR_M * 4), colour, class_id)


def _paint_slabs(street: Street, colour: NDArray[np.float64]) -> None:
    size = street.rng.uniform(0.7, 1.2)
    for side in (-1, 1):
        for ahead in np.arange(2, 26, size):
            street.fill(_flat(side * street.kerb_m, side * (street.wall_m + 2), ahead, ahead + 0.07), colour * 0.78)
        for offset in np.arange(size, 5, size):
            x = side * (street.kerb_m + offset)
            street.fill(_flat(x, x + 0.05, 2, 40), colour * 0.78)


def _walls(street: Street) -> list[tuple[float, Callable[[], None]]]:
    """Returns the houses on both sides and at the end of the street, with their distance."""
    rng = street.rng
    found: list[tuple[float, Callable[[], None]]] = []
    for side in (-1, 1):
        near = rng.uniform(1.5, 6)
        while near < _FAR_M * 0.7:
            far = near + rng.uniform(6, 16)
            if rng.random() < 0.8:
                found.append((far, _house(street, side * (street.wall_m + rng.uniform(0, 1.5)), near, far)))
            near = far + rng.choice([0.0, 0.0, 3.0, 9.0])
    for _ in range(rng.integers(0, 5)):
        left, width, up = rng.uniform(-60, 50), rng.uniform(8, 24), rng.uniform(5, 30)
        found.append((_FAR_M, _front(street, left, left + width, _FAR_M, up, street.pick(_URBAN))))
    return found


def _house(street: Street, x: float, near: float, far: float) -> Callable[[], None]:
    up, colour = street.rng.uniform(4.5, 15), street.pick(_URBAN)
    front = _front(street, min(x, x + 14 * np.sign(x)), max(x, x + 14 * np.sign(x)), near, up, colour * 0.85)
    glass, floor = street.pick(_URBAN) * street.rng.uniform(0.4, 1.2), street.rng.uniform(2.4, 3.2)
    pitch = street.rng.uniform(1.6, 3)

    def paint() -> None:
        front()
        street.fill([(x, 0, near), (x, up, near), (x, up, far), (x, 0, far)], colour, BUILDING)
        for bottom in np.arange(0.9, up - 1.6, floor):
            for ahead in np.arange(near + 0.6, far - 1, pitch):
                top = bottom + floor * 0.55
                window = [
                    (x, bottom, ahead),
                    (x, top, ahead),
                    (x, top, ahead + pitch / 2),
                    (x, bottom, ahead + pitch / 2),
                ]
                street.fill(window, glass)

    return paint


def _front(
    street: Street, left: float, right: float, ahead: float, up: float, colour: NDArray[np.float64]
) -> Callable[[], None]:
    glass = street.pick(_URBAN) * street.rng.uniform(0.4, 1.2)

    def paint() -> None:
        street.fill([(left, 0, ahead), (left, up, ahead), (right, up, ahead), (right, 0, ahead)], colour, BUILDING)
        for bottom in np.arange(0.9, up - 1.6, 2.8):
            for x in np.arange(left + 0.7, right - 1.2, 2.4):
                top = bottom + 1.5
                street.fill(
                    [(x, bottom, ahead), (x, top, ahead), (x + 1.1, top, ahead), (x + 1.1, bottom, ahead)],
                    glass,
                )

    return paint


def _things(street: Street) -> list[tuple[float, Callable[[], None]]]:
    """Returns trees, cars, people and signs with their distance; near ones are as likely as far ones."""
    rng = street.rng
    found: list[tuple[float, Callable[[], None]]] = []

    def scatter(most: int, nearest: float, farthest: float, make: Callable[[float, int], Callable[[], None]]) -> None:
        for _ in range(rng.integers(0, most + 1)):
            ahead = float(np.exp(rng.uniform(np.log(nearest), np.log(farthest))))
            found.append((ahead, make(ahead, int(rng.choice([-1, 1])))))

    scatter(7, 6, 50, lambda ahead, side: _tree(street, ahead, side))
    scatter(7, 4, 35, lambda ahead, side: _car(street, ahead, side))
    scatter(7, 3.5, 16, lambda ahead, side: _person(street, ahead, side))
    scatter(6, 4, 16, lambda ahead, side: _sign(street, ahead, side))
    return found


def _tree(street: Street, ahead: float, side: int) -> Callable[[], None]:
    rng = street.rng
    x = side * (street.wall_m + rng.uniform(-1.5, 3))
    bush = rng.random() < 0.3
    stem, reach = (0.3, 0.8) if bush else (rng.uniform(2, 3.2), rng.uniform(1.1, 2))
    leaves, bark = street.pick(_LEAVES), street.pick(_URBAN[[1, 4, 11]]) * 0.7
    crown = rng.normal(0, 0.55, (14, 3)) * reach

    def paint() -> None:
        trunk = [
            (x - 0.17, 0, ahead),
            (x - 0.12, stem + 1, ahead),
            (x + 0.12, stem + 1, ahead),
            (x + 0.17, 0, ahead),
        ]
        street.fill(trunk, bark, VEGETATION)
        for right, up, shade in crown:
            centre = (x + right, max(stem + reach + up, 0.4), ahead)
            street.disc(centre, reach * 0.6, leaves * (1 + 0.12 * shade), VEGETATION)

    return paint


def _car(street: Street, ahead: float, side: int) -> Callable[[], None]:
    rng = street.rng
    x = side * rng.choice([street.kerb_m * 0.45, street.kerb_m - 1.1])
    body, up, length = street.pick(_URBAN), rng.uniform(1.35, 2.1), rng.uniform(3.4, 4.6)
    glass, lamp = (
        street.pick(_URBAN[[3, 6, 11]]) * 0.6,
        np.array([190.0, 40, 40] if side > 0 else [235.0, 230, 200]),
    )
    waist, far = up * 0.58, ahead + length
    inner, roof = x - 0.88 * np.sign(x), x - 0.68 * np.sign(x)

    def paint() -> None:
        street.fill(_flat(x - 1.05, x + 1.05, ahead - 0.1, far), np.array([34.0, 34, 38]))
        for y in (ahead + 0.8, far - 0.8):
            street.disc((inner, 0.32, y), 0.33, np.array([26.0, 26, 28]), CAR)
        street.fill(
            [(inner, 0.22, ahead), (inner, waist, ahead), (inner, waist, far), (inner, 0.22, far)],
            body * 0.8,
            CAR,
        )
        side_glass = [
            (inner, waist, ahead + 0.2),
            (roof, up, ahead + 0.7),
            (roof, up, far - 1.4),
            (inner, waist, far - 0.8),
        ]
        street.fill(side_glass, glass * 0.8, CAR)
        for wheel in (x - 0.8, x + 0.55):
            street.fill(_board(wheel, wheel + 0.25, 0, 0.35, ahead), np.array([24.0, 24, 26]), CAR)
        street.fill(_board(x - 0.9, x + 0.9, 0.22, waist, ahead), body, CAR)
        cabin = [
            (x - 0.86, waist, ahead),
            (x - 0.66, up, ahead + 0.4),
            (x + 0.66, up, ahead + 0.4),
            (x + 0.86, waist, ahead),
        ]
        street.fill(cabin, body * 1.1, CAR)
        screen = [
            (x - 0.7, waist, ahead),
            (x - 0.56, up * 0.95, ahead + 0.3),
            (x + 0.56, up * 0.95, ahead + 0.3),
            (x + 0.7, waist, ahead),
        ]
        street.fill(screen, glass)
        street.fill(_board(x - 0.86, x - 0.6, waist - 0.25, waist - 0.08, ahead), lamp)
        street.fill(_board(x + 0.6, x + 0.86, waist - 0.25, waist - 0.08, ahead), lamp)
        street.fill(_board(x - 0.25, x + 0.25, 0.4, 0.52, ahead), np.array([210.0, 210, 200]))

    return paint


def _board(left: float, right: float, bottom: float, top: float, ahead: float) -> list[Point]:
    return [(left, bottom, ahead), (left, top, ahead), (right, top, ahead), (right, bottom, ahead)]


def _person(street: Street, ahead: float, side: int) -> Callable[[], None]:
    rng = street.rng
    walk = rng.uniform(street.kerb_m + 0.3, street.wall_m) if rng.random() < 0.8 else rng.uniform(0, street.kerb_m)
    x, tall, stride = side * walk, rng.uniform(0.85, 1.1), rng.uniform(0.02, 0.3)
    coat, legs = street.pick(_URBAN), street.pick(_URBAN) * 0.8
    skin, hair = np.array([198.0, 154, 126]) * rng.uniform(0.5, 1.1), street.pick(_URBAN[[4, 9, 11]]) * 0.6

    def paint() -> None:
        for foot in (-stride, stride):
            leg = [
                (x - 0.12, 0.9 * tall, ahead),
                (x + 0.12, 0.9 * tall, ahead),
                (x + foot + 0.08, 0, ahead),
                (x + foot - 0.08, 0, ahead),
            ]
            street.fill(leg, legs, PERSON)
        torso = [
            (x - 0.2, 0.8 * tall, ahead),
            (x - 0.27, 1.42 * tall, ahead),
            (x + 0.27, 1.42 * tall, ahead),
            (x + 0.2, 0.8 * tall, ahead),
        ]
        street.fill(torso, coat, PERSON)
        for arm in (-1, 1):
            hand = x + arm * (0.28 + stride / 2)
            street.fill(
                [
                    (x + arm * 0.2, 1.4 * tall, ahead),
                    (x + arm * 0.28, 1.4 * tall, ahead),
                    (hand + arm * 0.06, 0.8 * tall, ahead),
                    (hand - arm * 0.05, 0.8 * tall, ahead),
                ],
                coat * 0.85,
                PERSON,
            )
        street.disc((x, 1.6 * tall, ahead), 0.15, hair, PERSON)
        street.disc((x, 1.56 * tall, ahead), 0.12, skin, PERSON)

    return paint


def _sign(street: Street, ahead: float, side: int) -> Callable[[], None]:
    rng = street.rng
    x, up, size = side * (street.kerb_m + rng.uniform(0.2, 0.8)), rng.uniform(2, 3), rng.uniform(0.34, 0.5)
    face, rim, metal = street.pick(_URBAN), street.pick(_URBAN), street.pick(_URBAN[[0, 1, 3]])
    corners = int(rng.choice([3, 4, 8, 24]))
    turn = np.pi / 2 if corners == 3 else np.pi / corners

    def plate(radius: float) -> list[Point]:
        angles = turn + np.arange(corners) * 2 * np.pi / corners
        return [(x + radius * np.cos(angle), up + radius * np.sin(angle), ahead) for angle in angles]

    def paint() -> None:
        street.fill(_board(x - 0.07, x + 0.07, 0, up, ahead), metal, SIGN)
        street.fill(plate(size * 1.2), rim, SIGN)
        street.fill(plate(size * 0.9), face, SIGN)
        street.fill(_board(x - size * 0.35, x + size * 0.35, up - 0.07, up + 0.07, ahead), rim * 0.5)

    return paint


def _grained(street: Street) -> NDArray[np.float32]:
    """Returns the picture as float32 with the noise of each class on it."""
    height, width = street.ids.shape
    pixels = street.pixels.astype(np.float32)
    for scale, strengths in zip((1, 4, 16), _GRAIN.T, strict=True):
        noise = street.rng.standard_normal((height // scale, width // scale), np.float32)
        noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels += (noise * strengths[street.ids])[..., None]
    return pixels


def _lit(street: Street, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the picture under some light: shadows on the ground, colour, exposure and a glow on one side."""
    rng = street.rng
    height, width = street.ids.shape
    shade = np.ones((height, width), np.float32)
    for _ in range(rng.integers(0, 4)):
        ahead, left = rng.uniform(3, 25), rng.uniform(-12, 4)
        shadow = _flat(left, left + rng.uniform(3, 12), ahead, ahead + rng.uniform(1, 8))
        cv2.fillConvexPoly(shade, street.project(shadow), rng.uniform(0.5, 0.8))
    shade[~np.isin(street.ids, (ROAD, PAVEMENT))] = 1
    glow = np.linspace(*rng.uniform(0.8, 1.2, 2), width, dtype=np.float32)
    light = rng.choice(_LIGHTS) * rng.uniform(0.75, 1.15) + rng.normal(0, 0.04, 3)
    haze = rng.uniform(0, 0.25)
    lit = pixels * (shade * glow)[..., None] * light.astype(np.float32)
    return np.asarray(lit * (1 - haze) + haze * 150, np.float32)


def _small_ids(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = ids.shape
    cells = ids.reshape(height // _FINE, _FINE, width // _FINE, _FINE)
    lowest, highest = cells.min(axis=(1, 3)), cells.max(axis=(1, 3))
    return np.where(lowest == highest, lowest, MIXED).astype(np.uint8)
