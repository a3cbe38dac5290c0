"""Responses: every form of a response contains exactly the mask."""

import base64
import json
import pickle
import threading
import time
from collections import defaultdict

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
from segray.serving.polygons import encode_polygons
from segray.serving.requests import ResponseOptions, ResponseSizeError


def polygons_of(area):
    return json.loads(encode_polygons(area))


def summary_of(mask, classes, options):
    return json.loads(responses.encode_summary(mask, responses.count_class_pixels(mask, classes), classes, options))


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
    assert np.array_equal(fill(polygons_of(area), area.shape), area)


@given(AREAS, st.tuples(*[st.integers(0, 3)] * 4))
def test_polygons_of_a_larger_mask_are_those_of_its_part(area, margins):
    """Only the box around a region is searched for contours."""
    top, bottom, left, right = margins
    moved = [
        {
            "outer": [[x + left, y + top] for x, y in polygon["outer"]],
            "holes": [[[x + left, y + top] for x, y in hole] for hole in polygon["holes"]],
        }
        for polygon in polygons_of(area)
    ]
    assert polygons_of(np.pad(area, ((top, bottom), (left, right)))) == moved


def test_a_region_in_a_hole_is_a_separate_polygon():
    area = np.ones((9, 9), np.uint8)
    area[1:8, 1:8] = 0
    area[4, 4] = 1
    parts = polygons_of(area)
    assert sorted(len(part["holes"]) for part in parts) == [0, 1]
    assert np.array_equal(fill(parts, area.shape), area)


@given(AREAS)
def test_run_lengths_are_coco_rle(area):
    result = responses.mask_to_rle(area)
    assert np.array_equal(coco.decode({"size": result["size"], "counts": result["counts"].encode()}), area)


@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(0, 2)))
def test_the_summary_contains_each_present_class_and_its_share(mask):
    result = summary_of(mask, CLASSES, ResponseOptions("json", frozenset({"mask", "rle"}), version="3"))
    assert result["version"] == "3"
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
    result = summary_of(mask, classes, ResponseOptions("json", frozenset({"mask", "colours"})))
    assert [entry["id"] for entry in result["classes"]] == [0, 299]
    assert np.array_equal(decode_mask(base64.b64decode(result["mask"])), mask)


def contours_of(area):
    """The polygons in the order and the form of OpenCV's contours, built in Python."""
    contours, hierarchy = cv2.findContours(area, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons = defaultdict(lambda: {"outer": [], "holes": []})
    for index, (contour, (_, _, _, parent)) in enumerate(zip(contours, hierarchy[0] if contours else (), strict=True)):
        points = contour[:, 0].tolist()
        if parent < 0:
            polygons[index]["outer"] = points
        else:
            polygons[int(parent)]["holes"].append(points)
    return [polygons[index] for index in sorted(polygons)]


@given(AREAS)
def test_polygons_are_the_contours_of_opencv(area):
    assert polygons_of(area) == contours_of(area)


def checkerboard(side, period=4):
    rows, columns = np.indices((side, side)) % period
    return ((rows < period // 2) & (columns < period // 2)).astype(np.uint8)


def test_polygons_of_a_fragmented_mask_leave_the_interpreter_to_other_threads():
    """A thread that runs every millisecond waits at most as long as one call of OpenCV that creates the contours."""
    area, longest, stopped = checkerboard(1400), [0.0], threading.Event()

    def tick():
        last = time.perf_counter()
        while not stopped.wait(0.001):
            longest[0] = max(longest[0], time.perf_counter() - last)
            last = time.perf_counter()

    thread = threading.Thread(target=tick)
    thread.start()
    started_at = time.perf_counter()
    encoded = encode_polygons(area)
    total = time.perf_counter() - started_at
    stopped.set()
    thread.join()
    assert len(encoded) > 5 * 2**20
    assert longest[0] < max(0.25, total / 2)


@pytest.mark.parametrize("include", ["polygons", "rle", "mask", "colours"])
def test_a_response_that_is_too_large_is_refused_early(include):
    mask, sizes = checkerboard(512), []
    options = ResponseOptions("json", frozenset({include}), max_bytes=1000)
    with pytest.raises(ResponseSizeError, match="the response is larger than the limit of") as refused:
        responses.encode_body(np.zeros((512, 512, 3), np.uint8), mask, np.bincount(mask.ravel()), CLASSES, options)
    assert refused.value.status == 413
    with pytest.raises(ResponseSizeError):
        encode_polygons(mask, lambda size: sizes.append(size) or options.require_size(size))
    assert len(sizes) == 1  # before the contours are searched
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_a_batch_is_an_array_in_order_with_names():
    parts = [responses.SegmentationResponse(b'{"version": "1"}', "application/json", "1", 0.1, 1) for _ in range(2)]
    joined = json.loads(responses.join_batch(["a.jpg", 'b "quoted" \u00e9'], parts))
    assert joined == [{"version": "1", "name": "a.jpg"}, {"version": "1", "name": 'b "quoted" \u00e9'}]
