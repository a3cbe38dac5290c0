"""Preview image of training batches with the same rows, seeds, crops and masks as in training."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from segray.cluster import resources
from segray.cluster.connect import connect
from segray.cluster.nodes import potential_nodes
from segray.cluster.resources import WorkerResources
from segray.config import Config
from segray.core.classes import Classes
from segray.core.visualize import BACK, LINE, TEXT, draw_legend, draw_overlay
from segray.data.augment.augmenter import Augmenter, validate_augment
from segray.data.class_balance import draws_per_epoch
from segray.data.crops import Batch
from segray.data.loader import training_batches
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.training.run_spec import build_epoch_plan, loader_resources

CELL, MAX_ACROSS = 192, 8


def save_batch_preview(config: Config, count: int, file: Path) -> None:
    """Writes a PNG of the first batches of a run.

    Each batch has one strip with its masks overlaid on the crops. Ignored pixels are white.

    Args:
        config: settings of the run.
        count: number of batches.
        file: path of the PNG to write.

    Raises:
        ConfigError: a transform of `data.augment` is invalid.
        DataError: the dataset does not exist, or a row cannot be read.
    """
    validate_augment(config.data)
    manifest = read_manifest(config.data.root)
    source = SplitReader(config.data.root, manifest.split(config.data.train_split))
    connect()
    placement = resources.allocate_workers(potential_nodes(), 1, "cpu")
    batches = list(_batches(config, source, manifest.classes, placement, count))
    _sheet(batches, manifest.classes).save(file)


def _batches(
    config: Config, source: SplitReader, classes: Classes, placement: WorkerResources, count: int
) -> Iterator[Batch]:
    plan = build_epoch_plan(source, config, draws_per_epoch(source, config.data))
    augment = Augmenter(config.data, classes.ignore_id, classes.num_classes)
    slots = range(config.train.batch)
    return training_batches(source, plan, slots, 0, count, augment, loader_resources(config, placement))


def _sheet(batches: list[Batch], classes: Classes) -> Image.Image:
    strips = [_strip(number, batch, classes) for number, batch in enumerate(batches)]
    strips.append(draw_legend(classes, strips[0].width))
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), BACK)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _strip(number: int, batch: Batch, classes: Classes) -> Image.Image:
    """Returns the image of a batch: its crops, and below each crop the same crop with its mask."""
    images = batch["image"].permute(0, 2, 3, 1).numpy()
    masks = batch["mask"].numpy()
    across = min(len(images), MAX_ACROSS)
    height = LINE + 2 * CELL
    strip = Image.new("RGB", (across * CELL, LINE + -(-len(images) // across) * height), BACK)
    pen = ImageDraw.Draw(strip)
    pen.text((4, 2), f"step {number}: {len(images)} crops of {images.shape[2]} px", TEXT)
    for slot, (image, mask, row) in enumerate(zip(images, masks, batch["row"].tolist(), strict=True)):
        left, top = slot % across * CELL, LINE + slot // across * height
        for place, picture in enumerate((image, draw_overlay(image, mask, classes))):
            strip.paste(Image.fromarray(picture).resize((CELL - 2, CELL - 2)), (left, top + place * CELL))
        pen.text((left + 4, top + 2 * CELL), f"row {row}", TEXT)
    return strip
