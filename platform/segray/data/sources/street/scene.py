"""Synthetic street images: a small street in three dimensions, drawn from far to near, then textured and lit.

Colours overlap between the classes on purpose: sky, houses, road, pavement and cars can all be grey, and the light
changes from image to image. Shape, texture and context distinguish the classes.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from segray.data.sources.street.camera import (
    FINE,
    HEIGHT,
    PALETTE,
    PAVEMENT,
    ROAD,
    WIDTH,
    StreetScene,
    empty_street,
    ground_rect,
)
from segray.data.sources.street.objects import street_objects
from segray.data.sources.street.scenery import houses, paint_ground, paint_sky

__all__ = ["HEIGHT", "MIXED_PIXEL", "PALETTE", "WIDTH", "draw_street"]

MIXED_PIXEL = 255

# Gains of red, green and blue for noon, overcast, low sun, dusk and sodium lamps.
_LIGHTS = np.array([(1, 1, 1), (0.88, 0.92, 0.98), (1.12, 0.98, 0.8), (0.7, 0.74, 0.92), (0.88, 0.74, 0.56)])
_IS_GROUND = np.isin(np.arange(len(PALETTE)), (ROAD, PAVEMENT))
# Strength of fine, medium and coarse noise for each class, starting with sky.
_GRAIN = np.array([(0, 1, 6), (3, 2, 4), (9, 3, 5), (4, 5, 5), (8, 15, 9), (1, 1, 3), (2, 4, 3), (1, 1, 2)], np.float32)


def draw_street(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns an image (H, W, 3) uint8 RGB and its class ids (H, W) uint8; pixels shared by classes are MIXED_PIXEL."""
    street = empty_street(rng)
    paint_sky(street)
    paint_ground(street)
    # Objects are drawn from far to near, so that nearer objects occlude farther ones.
    for _, paint in sorted([*houses(street), *street_objects(street)], key=lambda street_object: -street_object[0]):
        paint()
    pixels = _apply_lighting(street, _add_grain(street))
    small = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    small += rng.normal(0, 2.5, small.shape)
    return small.clip(0, 255).astype(np.uint8), _downsample_ids(street.ids)


def _add_grain(street: StreetScene) -> NDArray[np.float32]:
    """Returns the image as float32 with the noise of each class added."""
    height, width = street.ids.shape
    pixels = street.pixels.astype(np.float32)
    for scale, strengths in zip((1, 4, 16), _GRAIN.T, strict=True):
        noise = street.rng.standard_normal((height // scale, width // scale), np.float32)
        noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels += (noise * strengths[street.ids])[..., None]
    return pixels


def _apply_lighting(street: StreetScene, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Applies random lighting: shadows on the ground, a colour cast, a brighter side and haze."""
    rng = street.rng
    height, width = street.ids.shape
    shade = np.ones((height, width), np.float32)
    for _ in range(rng.integers(0, 4)):
        near, left = rng.uniform(3, 25), rng.uniform(-12, 4)
        shadow = ground_rect(left, left + rng.uniform(3, 12), near, near + rng.uniform(1, 8))
        cv2.fillConvexPoly(shade, street.project(shadow), rng.uniform(0.5, 0.8))
    shade[~_IS_GROUND[street.ids]] = 1
    glow = np.linspace(rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2), width, dtype=np.float32)
    light = rng.choice(_LIGHTS) * rng.uniform(0.8, 1.15) + rng.normal(0, 0.03, 3)
    haze = rng.uniform(0, 0.2)
    result = pixels * (shade * glow)[..., None] * light.astype(np.float32)
    return np.asarray(result * (1 - haze) + haze * 150, np.float32)


def _downsample_ids(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = ids.shape
    cells = ids.reshape(height // FINE, FINE, width // FINE, FINE)
    lowest, highest = cells.min(axis=(1, 3)), cells.max(axis=(1, 3))
    return np.where(lowest == highest, lowest, MIXED_PIXEL).astype(np.uint8)
