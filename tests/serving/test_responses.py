"""Answers: what is answered of a mask is the mask, in every form."""

import base64

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from segray.core.classes import Classes
from segray.data.images import decode_mask
from segray.serving import responses
from segray.serving.requests import ResponseOptions

CLASSES = Classes.from_names(["road", "car", "sky"])
AREAS = arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 1))


def filled(parts, shape):
    """The area that polygons enclose, by its definition: each pixel is in an outer line, and in no hole of it."""
    found = np.zeros(shape, np.uint8)
    for part in parts:
        outer = cv2.fillPoly(np.zeros(shape, np.uint8), [np.array(part["outer"], np.int32)], 1)
        for hole in part["holes"]:
            line = np.array(hole, np.int32)
            inside = cv2.fillPoly(np.zeros(shape, np.uint8), [line], 1)
            rim = cv2.polylines(np.zeros(shape, np.uint8), [line], isClosed=True, color=1)
            outer[(inside == 1) & (rim == 0)] = 0
        found |= outer
    return found


@given(AREAS)
def test_polygons_enclose_the_area_and_nothing_else(area):
    assert np.array_equal(filled(responses.mask_to_polygons(area), area.shape), area)


def test_an_area_in_a_hole_is_a_part_of_its_own():
    area = np.ones((9, 9), np.uint8)
    area[1:8, 1:8] = 0
    area[4, 4] = 1
    parts = responses.mask_to_polygons(area)
    assert sorted(len(part["holes"]) for part in parts) == [0, 1]
    assert np.array_equal(filled(parts, area.shape), area)


@given(AREAS)
def test_run_lengths_are_cocos(area):
    found = responses.mask_to_rle(area)
    assert np.array_equal(coco.decode({"size": found["size"], "counts": found["counts"].encode()}), area)


@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(0, 2)))
def test_figures_tell_each_class_that_is_there_and_its_share(mask):
    pixels = responses.count_class_pixels(mask, CLASSES)
    found = responses.mask_summary(mask, pixels, CLASSES, ResponseOptions("json", frozenset({"mask", "rle"})))
    assert {one["name"]: one["pixels"] for one in found["classes"]} == {
        name: int((mask == number).sum()) for number, name in enumerate(CLASSES.names) if (mask == number).any()
    }
    assert sum(one["share"] for one in found["classes"]) == pytest.approx(1.0)
    assert (found["height"], found["width"]) == mask.shape
    assert np.array_equal(decode_mask(base64.b64decode(found["mask"])), mask)
    for one in found["classes"]:
        assert coco.area({"size": one["rle"]["size"], "counts": one["rle"]["counts"].encode()}) == one["pixels"]


def test_the_mask_is_its_png_and_the_overlay_mixes_the_colours():
    mask = np.array([[0, 1], [2, 2]], np.uint8)
    image = np.full((2, 2, 3), 100, np.uint8)
    assert np.array_equal(decode_mask(responses.encode_png(image, mask, CLASSES, ResponseOptions("mask"))), mask)
    body = responses.encode_png(image, mask, CLASSES, ResponseOptions("overlay", opacity=0.25))
    seen = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(seen, np.round(75 + np.array(CLASSES.palette)[mask] * 0.25))


def test_classes_beyond_256_keep_their_ids():
    classes = Classes.from_names([f"c{number}" for number in range(300)])
    mask = np.array([[299, 0]], np.uint16)
    found = responses.mask_summary(
        mask,
        responses.count_class_pixels(mask, classes),
        classes,
        ResponseOptions("json", frozenset({"mask", "colours"})),
    )
    assert [one["id"] for one in found["classes"]] == [0, 299]
    assert np.array_equal(decode_mask(base64.b64decode(found["mask"])), mask)
