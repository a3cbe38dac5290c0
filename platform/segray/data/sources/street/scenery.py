"""Static scenery: sky, road, pavement, grass and houses."""

import numpy as np

from segray.data.sources.street.camera import (
    BUILDING,
    DARK,
    FAR_M,
    GREYS,
    PAVEMENT,
    ROAD,
    SKY,
    VEGETATION,
    Paint,
    StreetScene,
    facing_rect,
    ground_rect,
    side_rect,
)
from segray.data.sources.street.objects import LEAVES, StreetObject

_SKIES = np.array([(136, 170, 212), (176, 186, 200), (206, 210, 214), (214, 180, 150), (120, 134, 170)], np.float64)
_ASPHALT = np.array([(92, 92, 96), (110, 108, 108), (76, 78, 84), (128, 126, 124)], np.float64)
_SLABS = np.array([(168, 160, 148), (150, 148, 145), (186, 178, 164), (140, 132, 124)], np.float64)
_WALLS = np.concatenate([GREYS, [(158, 104, 84), (190, 160, 120), (206, 196, 172), (170, 126, 96)]])
_PANES = np.concatenate([DARK, [(170, 190, 210), (230, 200, 130)]])


def paint_sky(street: StreetScene) -> None:
    """Fills the image with a vertical sky gradient."""
    top, bottom = street.vary_colour(_SKIES, 10), street.vary_colour(_SKIES, 10)
    share = np.linspace(0, 1, len(street.pixels))[:, None, None]
    street.pixels[:] = (top * (1 - share) + bottom * share).clip(0, 255)
    street.ids[:] = SKY


def paint_ground(street: StreetScene) -> None:
    """Draws the pavement slabs up to the horizon, grass on some of them, and the road in the middle."""
    rng, kerb = street.rng, street.kerb_m
    asphalt = street.vary_colour(_ASPHALT, 8)
    slabs = street.vary_colour(_SLABS, 8)
    _strip(street, -400, 400, slabs, PAVEMENT)
    _paint_joints(street, slabs * 0.78)
    for side in (-1, 1):
        if rng.random() < 0.35:
            _strip(street, side * (street.wall_m - 1.2), side * 60, street.vary_colour(LEAVES), VEGETATION)
        _strip(street, side * kerb, side * (kerb + 0.2), slabs * 0.7, PAVEMENT)
    _strip(street, -kerb, kerb, asphalt, ROAD)
    _paint_markings(street, np.full(3, rng.uniform(170, 225)))


def houses(street: StreetScene) -> list[StreetObject]:
    """Returns the houses along both sides, with gaps, and houses at the end of the street."""
    rng = street.rng
    objects = []
    for side in (-1, 1):
        near = rng.uniform(1.5, 6)
        while near < FAR_M * 0.7:
            far = near + rng.uniform(6, 16)
            if rng.random() < 0.8:
                objects.append(_house(street, side * (street.wall_m + rng.uniform(0, 1.5)), near, far))
            near = far + rng.choice([0.0, 0.0, 3.0, 9.0])
    for _ in range(rng.integers(0, 5)):
        left, up = rng.uniform(-60, 50), rng.uniform(5, 30)
        objects.append(_front(street, left, left + rng.uniform(8, 24), FAR_M, up, street.vary_colour(_WALLS)))
    return objects


def _strip(street: StreetScene, left: float, right: float, colour: Paint, class_id: int) -> None:
    street.fill(ground_rect(left, right, 0.8, FAR_M * 4), colour, class_id)


def _paint_joints(street: StreetScene, colour: Paint) -> None:
    size = street.rng.uniform(0.7, 1.2)
    for side in (-1, 1):
        inner, outer = side * street.kerb_m, side * (street.wall_m + 2)
        street.tile((ground_rect(inner, outer, near, near + 0.07) for near in np.arange(2, 26, size)), colour)
        offsets = inner + side * np.arange(size, 5, size)
        street.tile((ground_rect(right, right + 0.05, 2, 40) for right in offsets), colour)


def _paint_markings(street: StreetScene, colour: Paint) -> None:
    rng, kerb = street.rng, street.kerb_m
    street.tile((ground_rect(-0.09, 0.09, near, near + 3) for near in np.arange(rng.uniform(1.5, 4), 60, 6)), colour)
    if rng.random() < 0.35:
        near = rng.uniform(4, 12)
        stripes = np.arange(-kerb + 0.3, kerb - 0.5, 1.1)
        street.tile((ground_rect(left, left + 0.55, near, near + 3) for left in stripes), colour)


def _house(street: StreetScene, right: float, near: float, far: float) -> StreetObject:
    rng = street.rng
    up, colour = rng.uniform(4.5, 15), street.vary_colour(_WALLS)
    glass = street.vary_colour(_PANES)
    floor, pitch = rng.uniform(2.4, 3.2), rng.uniform(1.6, 3)
    left, outer = sorted([right, right + 14 * np.sign(right)])
    _, paint_front = _front(street, left, outer, near, up, colour * 0.85)

    def paint() -> None:
        paint_front()
        street.fill(side_rect(right, 0, up, near, far), colour, BUILDING)
        street.tile(
            (
                side_rect(right, bottom, bottom + floor * 0.55, start, start + pitch / 2)
                for bottom in np.arange(0.9, up - 1.6, floor)
                for start in np.arange(near + 0.6, far - 1, pitch)
            ),
            glass,
        )

    return far, paint


def _front(street: StreetScene, left: float, right: float, ahead: float, up: float, colour: Paint) -> StreetObject:
    glass = street.vary_colour(_PANES)

    def paint() -> None:
        street.fill(facing_rect(left, right, 0, up, ahead), colour, BUILDING)
        street.tile(
            (
                facing_rect(start, start + 1.1, bottom, bottom + 1.5, ahead)
                for bottom in np.arange(0.9, up - 1.6, 2.8)
                for start in np.arange(left + 0.7, right - 1.2, 2.4)
            ),
            glass,
        )

    return ahead, paint
