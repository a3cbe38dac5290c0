"""Responses: every form of a response contains exactly the mask."""

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


def fill(polygons, shape):
    """The region that polygons enclose: each pixel is inside an outer ring and in none of its holes."""
    result = np.zeros(shape, np.uint8)
    for part in polygons:
        outer = cv2.fillPoly(np.zeros(shape, np.uint8), [np.array(part["outer"], np.int32)], 1)
        for hole in part["holes"]:
            line = np.array(hole, np.int32)
            inside = cv2.fillPoly(np.zeros(shape, np.uint8), [line], 1)
            rim = cv2.polylines(np.zeros(shape, np.uint8), [line], isClosed=True, color=1)
            outer[(inside == 1) & (rim == 0)] = 0
        result |= outer
    return result


@given(AREAS)
def test_polygons_enclose_the_area_and_nothing_else(area):
    assert np.array_equal(fill(responses.mask_to_polygons(area), area.shape), area)


def test_a_region_in_a_hole_is_a_separate_polygon():
    area = np.ones((9, 9), np.uint8)
    area[1:8, 1:8] = 0
    area[4, 4] = 1
    parts = responses.mask_to_polygons(area)
    assert sorted(len(part["holes"]) for part in parts) == [0, 1]
    assert np.array_equal(fill(parts, area.shape), area)


@given(AREAS)
def test_run_lengths_are_coco_rle(area):
    result = responses.mask_to_rle(area)
    assert np.array_equal(coco.decode({"size": result["size"], "counts": result["counts"].encode()}), area)


@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(0, 2)))
def test_the_summary_contains_each_present_class_and_its_share(mask):
    pixels = responses.count_class_pixels(mask, CLASSES)
    result = responses.mask_summary(mask, pixels, CLASSES, ResponseOptions("json", frozenset({"mask", "rle"})))
    assert {entry["name"]: entry["pixels"] for entry in result["classes"]} == {
        name: int((mask == number).sum()) for number, name in enumerate(CLASSES.names) if (mask == number).any()
    }
    assert sum(entry["share"] for entry in result["classes"]) == pytest.approx(1.0)
    assert (result["height"], result["width"]) == mask.shape
    assert np.array_equal(decode_mask(base64.b64decode(result["mask"])), mask)
    for entry in result["classes"]:
        assert coco.area({"size": entry["rle"]["size"], "counts": entry["rle"]["counts"].encode()}) == entry["pixels"]


def test_the_mask_is_encoded_losslessly_and_the_overlay_mixes_the_colours():
    mask = np.array([[0, 1], [2, 2]], np.uint8)
    image = np.full((2, 2, 3), 100, np.uint8)
    assert np.array_equal(decode_mask(responses.encode_png(image, mask, CLASSES, ResponseOptions("mask"))), mask)
    body = responses.encode_png(image, mask, CLASSES, ResponseOptions("overlay", opacity=0.25))
    decoded = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(decoded, np.round(75 + np.array(CLASSES.palette)[mask] * 0.25))


def test_classes_beyond_256_keep_their_ids():
    classes = Classes.from_names([f"c{number}" for number in range(300)])
    mask = np.array([[299, 0]], np.uint16)
    result = responses.mask_summary(
        mask,
        responses.count_class_pixels(mask, classes),
        classes,
        ResponseOptions("json", frozenset({"mask", "colours"})),
    )
    assert [entry["id"] for entry in result["classes"]] == [0, 299]
    assert np.array_equal(decode_mask(base64.b64decode(result["mask"])), mask)
