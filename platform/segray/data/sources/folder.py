"""Folders of image and mask files: `images/<split>/*` and `masks/<split>/*`, or the mmsegmentation names.

Without a folder per split, list files next to these folders (train.txt, val.txt ..., one stem per line) define the
splits.
"""

from pathlib import Path

from segray.core.classes import read_class_names
from segray.core.errors import DataError
from segray.data.normalize import IMAGE_SUFFIXES
from segray.data.sources.collector import MaskReader, SampleCollector
from segray.data.sources.files import (
    MASK_SUFFIXES,
    USUAL_SPLITS,
    build_classes,
    by_stem,
    describe_dir,
    is_junk_file,
    match_stems,
    read_lines,
    require_source_dir,
    require_source_file,
    sort_splits,
)
from segray.data.sources.sample import UNSPLIT, SourceListing

LAYOUTS = (("images", "masks"), ("img_dir", "ann_dir"))
LAYOUT = "images/<split> and masks/<split>"
CLASSES = "classes.txt"


def list_samples(source: str | None) -> SourceListing:
    """Lists the pairs of image and mask with equal stem; class names come from classes.txt in the folder.

    Every process that reads a sample must see the folder under the same path.

    Raises:
        DataError: the folder does not exist, a split is empty, or a file has no partner; all such files are listed.
    """
    root = require_source_dir("folder", source, LAYOUT)
    collector = list_pairs(root)
    names_file = root / CLASSES
    if not names_file.exists():
        return collector.listing(None)
    return collector.listing(build_classes(names_file, read_class_names(require_source_file(root, names_file))))


def list_pairs(root: Path, mask_reader: MaskReader | None = None) -> SampleCollector:
    """Collects the pairs of a folder and the files without a partner.

    Args:
        root: folder of the source.
        mask_reader: mask reader factory; defaults to `None`, which uses the bytes of the file.

    Raises:
        DataError: the folder has neither layout, or no split.
    """
    images, masks = _layout(root)
    paths = [path for folder in (images, masks) for path in folder.iterdir()]
    names = {path.name for path in paths if path.is_dir() and not path.name.startswith(".")}
    collector = SampleCollector(root, mask_reader)
    if not names and not any(images.iterdir()):
        raise DataError(f"{images} is empty; expected folders such as {images / 'train'}, or files and lists.")
    if not names:
        _collect_listed(collector, images, masks)
        return collector
    for path in (path for path in paths if path.is_file() and not is_junk_file(path)):
        collector.problems.append(f"{path}: not in the folder of a split; move it into one")
    for split in sort_splits(names):
        _collect_split(collector, split, images / split, masks / split)
    return collector


def _layout(root: Path) -> tuple[Path, Path]:
    for images, masks in LAYOUTS:
        if (root / images).is_dir() and (root / masks).is_dir():
            return root / images, root / masks
    expected = " or ".join(f"{images}/ and {masks}/" for images, masks in LAYOUTS)
    raise DataError(
        f"source folder {root} contains {describe_dir(root)}; expected {expected}, with one folder per split."
    )


def _collect_listed(collector: SampleCollector, images: Path, masks: Path) -> None:
    """Adds the pairs that the list files name; without list files, adds all pairs to one split."""
    lists = {name: collector.root / f"{name}.txt" for name in USUAL_SPLITS}
    lists = {name: file for name, file in lists.items() if file.exists()}
    if not lists:
        _collect_split(collector, UNSPLIT, images, masks)
        return
    image_of = by_stem(images, IMAGE_SUFFIXES, "an image", collector.problems)
    mask_of = by_stem(masks, MASK_SUFFIXES, "a mask (lossless)", collector.problems)
    split_of: dict[str, str] = {}
    for split, file in lists.items():
        for stem in (name if name in image_of else Path(name).stem for name in read_lines(file, collector.root)):
            if stem in split_of:
                collector.problems.append(f"{file}: {stem} is also in {split_of[stem]}.txt; expected it once")
                continue
            split_of[stem] = split
            image, mask = image_of.get(stem, images / f"{stem}.jpg"), mask_of.get(stem, masks / f"{stem}.png")
            collector.add(split, stem, image, mask)


def _collect_split(collector: SampleCollector, split: str, images: Path, masks: Path) -> None:
    image_of = by_stem(images, IMAGE_SUFFIXES, "an image", collector.problems)
    mask_of = by_stem(masks, MASK_SUFFIXES, "a mask (lossless)", collector.problems)
    if images.is_dir() and not image_of:
        collector.problems.append(f"{images}: empty split; add images or remove the folder")
    for stem in match_stems(image_of, mask_of, (images, masks), collector.problems):
        collector.add(split, stem, image_of[stem], mask_of[stem])
