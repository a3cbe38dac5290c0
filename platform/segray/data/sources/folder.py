"""A folder of image and mask files: `images/<split>/*` + `masks/<split>/*`, or mmsegmentation's names for them.

Without a folder a split, lists beside them (train.txt, val.txt ...: a stem a line) tell the splits.
"""

from pathlib import Path

from segray.classes import Classes, read_names
from segray.data.originals import IMAGE_SUFFIXES
from segray.data.sources.files import (
    MASK_SUFFIXES,
    USUAL_SPLITS,
    Collected,
    Reading,
    by_stem,
    in_order,
    is_litter,
    lines,
    matched,
    present,
    root_of,
)
from segray.data.sources.sample import NOT_SPLIT, Found
from segray.errors import DataError

LAYOUTS = (("images", "masks"), ("img_dir", "ann_dir"))
LAYOUT = "images/<split> and masks/<split>"
CLASSES = "classes.txt"


def find(source: str | None) -> Found:
    """Returns the pairs of image and mask of equal stem in a folder; class names come from its classes.txt.

    Every process that reads a sample must see the folder under the same path.

    Raises:
        DataError: there is no such folder, a split is empty or a file has no partner; all such files are listed.
    """
    root = root_of("folder", source, LAYOUT)
    collected = pairs(root)
    named = root / CLASSES
    return collected.found(Classes.named(read_names(named)) if named.exists() else None)


def pairs(root: Path, reading: Reading | None = None) -> Collected:
    """Returns the pairs of a folder, and what in it has no partner.

    Args:
        root: of the folder.
        reading: what makes a mask of its file; none takes the file as it is.

    Raises:
        DataError: it has neither layout, or no split.
    """
    images, masks = _layout(root)
    names = {path.name for side in (images, masks) for path in side.iterdir() if path.is_dir()}
    names = {name for name in names if not name.startswith(".")}
    collected = Collected(root, reading)
    if not names and not any(images.iterdir()):
        raise DataError(f"{images} has no split; expected folders such as {images / 'train'}, or files and lists.")
    if not names:
        _listed(collected, images, masks)
        return collected
    for path in (path for side in (images, masks) for path in side.iterdir() if path.is_file() and not is_litter(path)):
        collected.problems.append(f"{path}: lies beside the folders of the splits; expected it in one of them")
    for split in in_order(names):
        _pair(collected, split, images / split, masks / split)
    return collected


def _layout(root: Path) -> tuple[Path, Path]:
    for images, masks in LAYOUTS:
        if (root / images).is_dir() and (root / masks).is_dir():
            return root / images, root / masks
    expected = " or ".join(f"{images}/ and {masks}/" for images, masks in LAYOUTS)
    raise DataError(f"source folder {root} holds {present(root)}; expected {expected}, with a folder a split.")


def _listed(collected: Collected, images: Path, masks: Path) -> None:
    """Adds the pairs that the lists name; without lists all of them, as not split."""
    lists = {name: collected.root / f"{name}.txt" for name in USUAL_SPLITS}
    lists = {name: file for name, file in lists.items() if file.exists()}
    if not lists:
        _pair(collected, NOT_SPLIT, images, masks)
        return
    image_of = by_stem(images, IMAGE_SUFFIXES, "an image", collected.problems)
    mask_of = by_stem(masks, MASK_SUFFIXES, "a mask (lossless)", collected.problems)
    split_of: dict[str, str] = {}
    for split, file in lists.items():
        for stem in (name if name in image_of else Path(name).stem for name in lines(file)):
            if stem in split_of:
                collected.problems.append(f"{file}: {stem} is in {split_of[stem]}.txt already; expected it once")
                continue
            split_of[stem] = split
            image, mask = image_of.get(stem, images / f"{stem}.jpg"), mask_of.get(stem, masks / f"{stem}.png")
            collected.add(split, stem, image, mask)


def _pair(collected: Collected, split: str, images: Path, masks: Path) -> None:
    image_of = by_stem(images, IMAGE_SUFFIXES, "an image", collected.problems)
    mask_of = by_stem(masks, MASK_SUFFIXES, "a mask (lossless)", collected.problems)
    if images.is_dir() and not image_of:
        collected.problems.append(f"{images}: empty split, no image; add images or remove the folder")
    for stem in matched(image_of, mask_of, (images, masks), collected.problems):
        collected.add(split, stem, image_of[stem], mask_of[stem])
