"""Pascal VOC 2012 in its published layout: JPEGImages/, SegmentationClass/ (palette PNG) and one list per split."""

from pathlib import Path

from segray.core.classes import Classes, default_palette
from segray.data.sources.collector import SampleCollector
from segray.data.sources.files import glob_files, read_lines, require_path, require_source_dir, sort_splits
from segray.data.sources.sample import SourceListing

LAYOUT = "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt, as in VOCdevkit/VOC2012"
NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
UNION = "trainval"


def list_samples(source: str | None) -> SourceListing:
    """Lists the samples of the split lists, except `trainval`, which combines two others; the border, 255, is ignored.

    Raises:
        DataError: the folder does not exist, or a list names missing files; all such files are listed.
    """
    root = require_source_dir("voc", source, LAYOUT)
    images, masks = require_path(root / "JPEGImages", LAYOUT), require_path(root / "SegmentationClass", LAYOUT)
    lists = {path.stem: path for path in glob_files(require_path(root / "ImageSets" / "Segmentation", LAYOUT), "*.txt")}
    if {"train", "val"} <= lists.keys():
        lists.pop(UNION, None)
    collector, split_of = SampleCollector(root), dict[str, str]()
    for split in sort_splits(lists):
        for stem in (str(Path(line)) for line in read_lines(lists[split], root)):
            if split == "test" and not (masks / f"{stem}.png").exists():
                continue  # the test split is published without masks
            if stem in split_of:
                collector.problems.append(
                    f"{lists[split]}: {stem} is also in {split_of[stem]}.txt; expected it once; remove the "
                    "lists that are not needed"
                )
                continue
            split_of[stem] = split
            collector.add(split, stem, images / f"{stem}.jpg", masks / f"{stem}.png")
    palette = ((0, 0, 0), *default_palette(len(NAMES) - 1))
    return collector.listing(Classes(names=NAMES, palette=palette), absent_ok=True)
