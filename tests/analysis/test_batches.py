"""The sheet shows the crops that a run trains on."""

import numpy as np
from PIL import Image

from segray.analysis import batches
from segray.data.augment import Augment
from segray.data.pieces import Source
from segray.data.samplers import draw_times
from segray.data.schema import read_manifest
from segray.data.stream import Means, training_batches
from segray.pictures import LINE, overlaid
from segray.train.job import training_plan


def test_the_first_batches_are_on_it(tiny, tmp_path):
    batches.save(tiny, 2, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    manifest = read_manifest(tiny.data.root)
    source = Source(tiny.data.root, manifest.split("train"))
    plan = training_plan(source, tiny, draw_times(source, tiny.data))
    augment = Augment(tiny.data, manifest.classes.ignore_id)
    shown = list(training_batches(source, plan, range(4), 0, 2, augment, Means(0.5, 1)))
    side = batches.CELL - 2
    height = 2 * LINE + 2 * batches.CELL
    assert sheet.shape[1] == 4 * batches.CELL
    for step, batch in enumerate(shown):
        for slot in range(4):
            crop = batch["image"][slot].permute(1, 2, 0).numpy()
            masked = overlaid(crop, batch["mask"][slot].numpy(), manifest.classes)
            top, left = step * height + LINE, slot * batches.CELL
            for place, picture in enumerate((crop, masked)):
                cell = sheet[top + place * batches.CELL :, left:][:side, :side]
                assert np.array_equal(cell, np.asarray(Image.fromarray(picture).resize((side, side))))
