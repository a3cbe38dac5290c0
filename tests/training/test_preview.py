"""The sheet shows the crops that a run trains on."""

import numpy as np
from PIL import Image

from segray.core.visualize import LINE, draw_overlay
from segray.data.augment.augmenter import Augmenter
from segray.data.class_balance import draws_per_epoch
from segray.data.loader import LoaderResources, training_batches
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.training import preview
from segray.training.run_spec import build_epoch_plan


def test_the_preview_shows_the_first_batches(tiny, tmp_path):
    preview.save_batch_preview(tiny, 2, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    manifest = read_manifest(tiny.data.root)
    source = SplitReader(tiny.data.root, manifest.split("train"))
    plan = build_epoch_plan(source, tiny, draws_per_epoch(source, tiny.data))
    augment = Augmenter(tiny.data, manifest.classes.ignore_id)
    shown = list(training_batches(source, plan, range(4), 0, 2, augment, LoaderResources(0.5, 1)))
    side = preview.CELL - 2
    height = 2 * LINE + 2 * preview.CELL
    assert sheet.shape[1] == 4 * preview.CELL
    for step, batch in enumerate(shown):
        for slot in range(4):
            crop = batch["image"][slot].permute(1, 2, 0).numpy()
            masked = draw_overlay(crop, batch["mask"][slot].numpy(), manifest.classes)
            top, left = step * height + LINE, slot * preview.CELL
            for place, picture in enumerate((crop, masked)):
                cell = sheet[top + place * preview.CELL :, left:][:side, :side]
                assert np.array_equal(cell, np.asarray(Image.fromarray(picture).resize((side, side))))
