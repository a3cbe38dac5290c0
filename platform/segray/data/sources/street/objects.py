"""Objects on the street: trees, cars, people and signs, each with its distance and its drawing function."""

from collections.abc import Callable

import numpy as np

from segray.data.sources.street.camera import (
    CAR,
    DARK,
    GREYS,
    PERSON,
    SIGN,
    VEGETATION,
    Paint,
    Point,
    StreetScene,
    facing_rect,
    ground_rect,
    side_rect,
    trapezium,
)

StreetObject = tuple[float, Callable[[], None]]

LEAVES = np.array(
    [(66, 106, 46), (88, 120, 50), (50, 88, 48), (136, 126, 56), (158, 112, 58), (146, 92, 62)], np.float64
)
_BARK = np.array([(112, 96, 84), (96, 74, 60), (64, 56, 50)], np.float64)
_LACQUER = np.concatenate([GREYS, DARK[2:], [(164, 42, 42), (50, 84, 150), (214, 214, 212), (60, 104, 84)]])
_CLOTHES = np.array(
    [(190, 60, 50), (50, 70, 140), (204, 170, 60), (120, 60, 120), (60, 110, 90), (204, 204, 200)], np.float64
)
_HAIR = np.array([(96, 64, 44), (130, 110, 80), (40, 36, 34)], np.float64)
_TYRE = np.array([26.0, 26, 28])
_PLATE = np.array([210.0, 210, 200])
_TAIL_LAMP, _HEAD_LAMP = np.array([190.0, 40, 40]), np.array([235.0, 230, 200])
_FACE = np.array([(238, 238, 234), (240, 204, 50)], np.float64)
_RIM = np.array([(196, 28, 34), (24, 62, 168)], np.float64)
_SKIN = np.array([198.0, 154, 126])


def street_objects(street: StreetScene) -> list[StreetObject]:
    """Returns several objects of each kind on both sides of the street, distributed over near and far distances."""
    rng = street.rng
    kinds = [(_tree, 8, 6, 30), (_car, 6, 4, 22), (_person, 10, 3.2, 9), (_sign, 7, 3.6, 10)]
    objects = []
    for make, max_count, nearest, farthest in kinds:
        for _ in range(rng.integers(0, max_count + 1)):
            ahead = float(np.exp(rng.uniform(np.log(nearest), np.log(farthest))))
            objects.append((ahead, make(street, ahead, int(rng.choice([-1, 1])))))
    return objects


def _tree(street: StreetScene, ahead: float, side: int) -> Callable[[], None]:
    rng = street.rng
    x = side * (street.wall_m + rng.uniform(-1.5, 3))
    bush = rng.random() < 0.3
    stem, reach = (0.3, 0.8) if bush else (rng.uniform(2, 3.2), rng.uniform(1.1, 2))
    leaves, bark = street.vary_colour(LEAVES), street.vary_colour(_BARK)
    crown = rng.normal(0, 0.55, (14, 3)) * reach

    def paint() -> None:
        street.fill(trapezium(ahead, (x - 0.17, x + 0.17, 0), (x - 0.12, x + 0.12, stem + 1)), bark, VEGETATION)
        for right, up, shade in crown:
            centre = (x + right, max(stem + reach + up, 0.4), ahead)
            street.ball(centre, reach * 0.6, leaves * (1 + 0.12 * shade), VEGETATION)

    return paint


def _car(street: StreetScene, ahead: float, side: int) -> Callable[[], None]:
    rng = street.rng
    x = side * rng.choice([street.kerb_m * 0.45, street.kerb_m - 1.1])
    body, glass = street.vary_colour(_LACQUER), street.vary_colour(DARK) * 0.6
    up, far = rng.uniform(1.35, 2.1), ahead + rng.uniform(3.4, 4.6)
    waist, lamp = up * 0.58, _TAIL_LAMP if side > 0 else _HEAD_LAMP

    def paint() -> None:
        street.fill(ground_rect(x - 1.05, x + 1.05, ahead - 0.1, far), _TYRE * 1.3)
        _paint_flank(street, x, (waist, up), (ahead, far), body * 0.8, glass * 0.8)
        for left in (x - 0.8, x + 0.55):
            street.fill(facing_rect(left, left + 0.25, 0, 0.35, ahead), _TYRE, CAR)
        street.fill(facing_rect(x - 0.9, x + 0.9, 0.22, waist, ahead), body, CAR)
        street.fill(trapezium(ahead, (x - 0.86, x + 0.86, waist), (x - 0.66, x + 0.66, up)), body * 1.1, CAR)
        street.fill(trapezium(ahead, (x - 0.7, x + 0.7, waist), (x - 0.56, x + 0.56, up * 0.94)), glass)
        for left in (x - 0.86, x + 0.6):
            street.fill(facing_rect(left, left + 0.26, waist - 0.25, waist - 0.08, ahead), lamp)
        street.fill(facing_rect(x - 0.25, x + 0.25, 0.4, 0.52, ahead), _PLATE)

    return paint


def _paint_flank(
    street: StreetScene, x: float, ups: tuple[float, float], ends: tuple[float, float], body: Paint, glass: Paint
) -> None:
    """Draws the side of a car that faces the middle of the road.

    Args:
        street: street to draw on.
        x: position of the centre of the car, in metres to the right of the middle of the road.
        ups: heights of the waist and the roof in metres.
        ends: distances of the near and the far end in metres.
        body: colour of the body.
        glass: colour of the windows.
    """
    (waist, up), (near, far) = ups, ends
    inner, roof = x - 0.88 * np.sign(x), x - 0.68 * np.sign(x)
    for axle in (near + 0.8, far - 0.8):
        street.ball((inner, 0.32, axle), 0.33, _TYRE, CAR)
    street.fill(side_rect(inner, 0.22, waist, near, far), body, CAR)
    window = [(inner, waist, near + 0.2), (roof, up, near + 0.3), (roof, up, far - 1.4), (inner, waist, far - 0.8)]
    street.fill(window, glass, CAR)


def _person(street: StreetScene, ahead: float, side: int) -> Callable[[], None]:
    rng = street.rng
    on_pavement = (street.kerb_m + 0.3, street.kerb_m + 2.5)
    x = side * rng.uniform(*(on_pavement if rng.random() < 0.65 else (0, street.kerb_m)))
    tall, stride = rng.uniform(0.85, 1.1), rng.uniform(0.02, 0.3)
    coat, legs = street.vary_colour(_CLOTHES), street.vary_colour(DARK) * 0.7
    skin, hair = _SKIN * rng.uniform(0.5, 1.1), street.vary_colour(_HAIR)

    def paint() -> None:
        for foot in (x - stride, x + stride):
            leg = trapezium(ahead, (foot - 0.08, foot + 0.08, 0), (x - 0.12, x + 0.12, 0.9 * tall))
            street.fill(leg, legs, PERSON)
        torso = trapezium(ahead, (x - 0.2, x + 0.2, 0.8 * tall), (x - 0.27, x + 0.27, 1.42 * tall))
        street.fill(torso, coat, PERSON)
        for arm in (-1, 1):
            hand = x + arm * (0.28 + stride / 2)
            shoulder = (x + arm * 0.2, x + arm * 0.28, 1.4 * tall)
            sleeve = trapezium(ahead, (hand - arm * 0.05, hand + arm * 0.06, 0.8 * tall), shoulder)
            street.fill(sleeve, coat * 0.85, PERSON)
        street.ball((x, 1.6 * tall, ahead), 0.15, hair, PERSON)
        street.ball((x, 1.56 * tall, ahead), 0.12, skin, PERSON)

    return paint


def _sign(street: StreetScene, ahead: float, side: int) -> Callable[[], None]:
    rng = street.rng
    x = side * (street.kerb_m + rng.uniform(0.2, 0.8))
    up, size = rng.uniform(2, 3), rng.uniform(0.45, 0.65)
    face, rim, metal = street.vary_colour(_FACE), street.vary_colour(_RIM), street.vary_colour(GREYS)
    corners = int(rng.choice([3, 4, 8, 24]))

    def paint() -> None:
        street.fill(facing_rect(x - 0.09, x + 0.09, 0, up, ahead), metal, SIGN)
        street.fill(_plate((x, up, ahead), size * 1.2, corners), rim, SIGN)
        street.fill(_plate((x, up, ahead), size * 0.8, corners), face, SIGN)
        street.fill(facing_rect(x - size * 0.35, x + size * 0.35, up - 0.07, up + 0.07, ahead), rim * 0.3)

    return paint


def _plate(centre: Point, radius_m: float, corners: int) -> list[Point]:
    x, up, ahead = centre
    first = np.pi / 2 if corners == 3 else np.pi / corners
    angles = first + np.arange(corners) * 2 * np.pi / corners
    return [(x + radius_m * np.cos(angle), up + radius_m * np.sin(angle), ahead) for angle in angles]
