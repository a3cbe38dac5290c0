"""The picture of predictions: every class in its colour, where it is."""

import numpy as np
from PIL import Image

from segray.core import visualize
from segray.core.classes import Classes
from segray.core.visualize import HEADER, WIDTH, PreviewRow

CLASSES = Classes(names=("a", "b"), palette=((10, 20, 30), (200, 100, 0)))


def test_ids_are_coloured_and_ignored_ones_white():
    found = visualize.colorize(np.array([[0, 1], [255, 0]]), CLASSES)
    assert found.tolist() == [[[10, 20, 30], [200, 100, 0]], [[255, 255, 255], [10, 20, 30]]]


def test_rows_stand_below_each_other_and_columns_side_by_side(tmp_path):
    truth = np.zeros((WIDTH // 2, WIDTH), np.int64)
    truth[:, WIDTH // 2 :] = 1
    image = np.full((64, 128, 3), 77, np.uint8)  # at the model's size, not the mask's
    rows = [PreviewRow(image, truth, truth), PreviewRow(image, truth, 1 - truth)]
    visualize.save_previews(rows, CLASSES, tmp_path / "new" / "x.png")
    sheet = np.asarray(Image.open(tmp_path / "new" / "x.png"))
    assert sheet.shape == (HEADER + 2 * (WIDTH // 2), 3 * WIDTH, 3)
    middle = HEADER + WIDTH // 4
    assert sheet[middle, WIDTH // 2].tolist() == [77, 77, 77]
    assert sheet[middle, WIDTH + 10].tolist() == sheet[middle, 2 * WIDTH + 10].tolist() == [10, 20, 30]
    assert sheet[middle, 2 * WIDTH - 10].tolist() == [200, 100, 0]
    assert sheet[middle + WIDTH // 2, 2 * WIDTH + 10].tolist() == [200, 100, 0]


def test_a_very_wide_image_has_a_strip_of_one_pixel(tmp_path):
    ids = np.zeros((1, 4 * WIDTH), np.int64)
    visualize.save_previews([PreviewRow(np.zeros((1, 4 * WIDTH, 3), np.uint8), ids, ids)], CLASSES, tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == (3 * WIDTH, HEADER + 1)


def test_a_very_tall_image_keeps_its_shape_in_a_strip_of_bounded_height(tmp_path):
    ids = np.ones((64 * WIDTH, 32), np.int64)
    rows = [PreviewRow(np.full((*ids.shape, 3), 77, np.uint8), ids, ids)]
    visualize.save_previews(rows, CLASSES, tmp_path / "x.png")
    sheet = np.asarray(Image.open(tmp_path / "x.png"))
    assert sheet.shape == (HEADER + visualize.MAX_HEIGHT, 3 * WIDTH, 3)
    width = round(32 * visualize.MAX_HEIGHT / (64 * WIDTH))
    assert (sheet[HEADER:, WIDTH : WIDTH + width] == CLASSES.palette[1]).all()
    assert not sheet[HEADER:, WIDTH + width : 2 * WIDTH].any()


def test_a_size_fits_a_box_without_change_of_shape():
    assert visualize.fit_size(200, 100, 50, 80) == (50, 25)
    assert visualize.fit_size(100, 200, 50, 80) == (40, 80)
    assert visualize.fit_size(10, 10, 50, 80) == (50, 50)
    assert visualize.fit_size(1, 100_000, 50, 80) == (1, 80)
    assert visualize.fit_size(100_000, 1, 50, 80) == (50, 1)
