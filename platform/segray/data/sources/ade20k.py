"""ADE20K scene parsing as published (ADEChallengeData2016): 150 classes with ids from 1; 0 is other objects."""

from pathlib import Path

from segray.core.errors import DataError
from segray.data.normalize import IMAGE_SUFFIXES
from segray.data.sources.collector import SampleCollector
from segray.data.sources.files import build_classes, by_stem, match_stems, read_lines, require_path, require_source_dir
from segray.data.sources.sample import SourceListing

LAYOUT = "images/training/, annotations/training/, the same of validation, and objectInfo150.txt"
SPLITS = {"training": "train", "validation": "val"}
NAMES = "objectInfo150.txt"
NUM_CLASSES = 150


def list_samples(source: str | None) -> SourceListing:
    """Lists the pairs of the training and validation splits; the label 0, other objects, is ignored.

    Raises:
        DataError: the folder or its class names do not exist, or files have no partner; all such files are listed.
    """
    root = require_source_dir("ade20k", source, LAYOUT)
    images, masks = require_path(root / "images", LAYOUT), require_path(root / "annotations", LAYOUT)
    classes = build_classes(root / NAMES, _parse_names(root, require_path(root / NAMES, LAYOUT)))
    collector = SampleCollector(root)
    for folder, split in SPLITS.items():
        image_of = by_stem(images / folder, IMAGE_SUFFIXES, "an image", collector.problems)
        mask_of = by_stem(masks / folder, (".png",), "a mask", collector.problems)
        for stem in match_stems(image_of, mask_of, (images / folder, masks / folder), collector.problems):
            collector.add(split, stem, image_of[stem], mask_of[stem])
    lookup: dict[int, int | None] = {0: None} | {label: label - 1 for label in range(1, NUM_CLASSES + 1)}
    return collector.listing(classes, lookup, absent_ok=True)


def _parse_names(root: Path, file: Path) -> list[str]:
    """Parses the first name of each class from lines such as `1  0.1576  11664  1172  1  wall`, after a header line."""
    rows = [line.split("\t") for line in read_lines(file, root)][1:]
    if [row[0].strip() for row in rows] != [str(number) for number in range(1, NUM_CLASSES + 1)]:
        raise DataError(
            f"{file} has {len(rows)} classes; expected {NUM_CLASSES}, numbered from 1, in columns separated by tabs."
        )
    return [row[-1].split(",")[0].strip() for row in rows]
