"""A sheet of training batches as the trainer sees them: the same rows, seeds, crops and masks."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from segray import capacity, cluster
from segray.capacity import Placement
from segray.classes import Classes
from segray.config import Config
from segray.data.augment import Augment
from segray.data.pieces import Source
from segray.data.samplers import draw_times
from segray.data.schema import read_manifest
from segray.data.stream import Batch, training_batches
from segray.pictures import BACK, LINE, TEXT, legend, overlaid
from segray.train.job import means, training_plan

CELL, MOST_ACROSS = 192, 8


def save(config: Config, count: int, file: Path) -> None:
    """Writes a PNG of a run's first batches; a row each, masks laid over the crops, white where not counted.

    Args:
        config: of the run.
        count: of batches.
        file: to be written.

    Raises:
        DataError: there is no such dataset, or a row of it cannot be read.
    """
    manifest = read_manifest(config.data.root)
    source = Source(config.data.root, manifest.split(config.data.train_split))
    cluster.connect()
    placement = capacity.place(cluster.nodes(), 1, "cpu")
    batches = list(_batches(config, source, manifest.classes, placement, count))
    _sheet(batches, manifest.classes).save(file)


def _batches(config: Config, source: Source, classes: Classes, placement: Placement, count: int) -> Iterator[Batch]:
    plan = training_plan(source, config, draw_times(source, config.data))
    augment = Augment(config.data, classes.ignore_id)
    slots = range(config.train.batch)
    return training_batches(source, plan, slots, 0, count, augment, means(config, placement))


def _sheet(batches: list[Batch], classes: Classes) -> Image.Image:
    strips = [_strip(number, batch, classes) for number, batch in enumerate(batches)]
    strips.append(legend(classes, strips[0].width))
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), BACK)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _strip(number: int, batch: Batch, classes: Classes) -> Image.Image:
    """Returns a batch: crops, and below each the same with its mask."""
    images = batch["image"].permute(0, 2, 3, 1).numpy()
    masks = batch["mask"].numpy()
    across = min(len(images), MOST_ACROSS)
    height = LINE + 2 * CELL
    strip = Image.new("RGB", (across * CELL, LINE + -(-len(images) // across) * height), BACK)
    pen = ImageDraw.Draw(strip)
    pen.text((4, 2), f"step {number}: {len(images)} crops of {images.shape[2]} px", TEXT)
    for slot, (image, mask, row) in enumerate(zip(images, masks, batch["row"].tolist(), strict=True)):
        left, top = slot % across * CELL, LINE + slot // across * height
        for place, picture in enumerate((image, overlaid(image, mask, classes))):
            strip.paste(Image.fromarray(picture).resize((CELL - 2, CELL - 2)), (left, top + place * CELL))
        pen.text((left + 4, top + 2 * CELL), f"row {row}", TEXT)
    return strip
