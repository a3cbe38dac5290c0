"""Crops on the threads of a process: an id that is no class is found before the batch is copied to a device."""

import numpy as np
import pytest

from segray.config import DataConfig
from segray.core.errors import DataError
from segray.data.augment.augmenter import Augmenter
from segray.data.crops import SlotDraw, batches_on_threads
from segray.data.images import encode_mask, require_known_ids


class Rows(dict):
    """Encoded rows by number."""

    def row_id(self, row):
        return f"train/{row:02d}"


def row(ids):
    image = np.random.default_rng(0).integers(0, 256, (*ids.shape, 3), np.uint8)
    return encode_mask(image), encode_mask(ids)


FILL = [{"Rotate": {"limit": [45, 45], "fill_mask": 7, "p": 1}}, {"CenterCrop": {"height": 32, "width": 32}}]


@pytest.mark.parametrize(
    ("dtype", "ignore_id", "num_classes", "foreign"), [(np.uint8, 255, 3, 3), (np.uint16, 65535, 300, 300)]
)
def test_a_stored_id_that_is_no_class_is_an_error_of_its_row(dtype, ignore_id, num_classes, foreign):
    ids = np.full((40, 48), ignore_id, dtype)
    ids[10:] = num_classes - 1
    bad = ids.copy()
    bad[20, :5] = foreign
    data = DataConfig(crop=64, scale_min=1, scale_max=1)  # the crop contains the whole image
    augmenter = Augmenter(data, ignore_id, num_classes)
    draws = [SlotDraw((number,), augmenter.draw(number)) for number in range(6)]
    steps = iter([(draws, Rows({number: row(bad if number == 4 else ids) for number in range(6)}))])
    ((batch, errors),) = batches_on_threads(steps, augmenter, 2, pinned=False)
    assert [(error.row, error.row_id) for error in errors] == [(4, "train/04")]
    assert f"the mask contains the ids [{foreign}]" in errors[0].reason
    assert set(batch["mask"].unique().tolist()) <= {num_classes - 1, ignore_id}


def test_an_id_that_a_transform_fills_in_is_an_error_of_its_row():
    augmenter = Augmenter(DataConfig(crop=32, augment=FILL), 255, 3)
    rows = Rows({4: row(np.zeros((40, 48), np.uint8))})
    ((batch, (error,)),) = batches_on_threads(iter([([SlotDraw((4,), augmenter.draw(4))], rows)]), augmenter, 1, False)
    assert (error.row, error.row_id) == (4, "train/04")
    assert "the mask contains the ids [7]" in error.reason
    assert "expected 0..2, or 255 for ignored pixels" in error.reason
    assert "fill_mask" in error.reason
    assert (batch["mask"] == 255).all()
    known = Augmenter(DataConfig(crop=32, augment=FILL), 255, 8)
    ((_, errors),) = batches_on_threads(iter([([SlotDraw((4,), known.draw(4))], rows)]), known, 1, False)
    assert errors == []


def test_ids_are_compared_with_the_classes():
    mask = np.array([[0, 2, 255]], np.uint8)
    require_known_ids(mask, 3, 255)
    with pytest.raises(DataError, match=r"the mask contains the ids \[2\] in 1 pixels; expected 0\.\.1, or 255"):
        require_known_ids(mask, 2, 255)
    with pytest.raises(DataError, match=r"\[255\] in 2 pixels; expected 0\.\.99, or 65535"):
        require_known_ids(np.array([[65535, 255, 255]], np.uint16), 100, 65535)
