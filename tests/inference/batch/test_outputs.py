"""What is written of a prediction, and what does not fit on the disk."""

import errno
import io

import numpy as np
import pytest
from PIL import Image

from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.data.images import Pixels
from segray.inference.batch import outputs as module
from segray.inference.batch.outputs import Outputs, palette_png

CLASSES = Classes.from_names(["road", "car"])


def image(height: int = 4, width: int = 6) -> Pixels:
    return np.zeros((height, width, 3), np.uint8)


@pytest.mark.parametrize("form", ["png", "parquet"])
def test_a_disk_without_room_is_told(tmp_path, monkeypatch, form):
    outputs = Outputs(str(tmp_path / "out"), CLASSES, form)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    result = outputs.encode("a", image(), np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match=r"output \S+/out cannot be written \(.*No space left on device"):
        outputs.write("part", [result])


def test_more_classes_than_a_palette_holds_are_16_bit_grey():
    classes = Classes.from_names([f"c{number}" for number in range(300)])
    mask = np.arange(300, dtype=np.uint16).reshape(15, 20)
    found = Image.open(io.BytesIO(palette_png(mask, classes)))
    assert found.mode == "I;16"
    assert np.array_equal(np.asarray(found), mask)
