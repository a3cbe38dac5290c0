"""A folder of image and mask files: `images/<split>/*` + `masks/<split>/*`, or mmsegmentation's names for them."""

from functools import partial
from pathlib import Path

from segray.classes import Classes, read_names
from segray.data.sources.sample import Found, Sample
from segray.errors import DataError, listing

LAYOUTS = (("images", "masks"), ("img_dir", "ann_dir"))
CLASSES = "classes.txt"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

_FIRST_SPLITS = ("train", "val", "test")


def find(source: str | None) -> Found:
    """Returns the pairs of image and mask of equal stem in a folder; class names come from its classes.txt.

    Every process that reads a sample must see the folder under the same path.

    Raises:
        DataError: there is no such folder, a split is empty or a file has no partner; all such files are listed.
    """
    if source is None:
        raise DataError("format folder needs --source DIR, a folder with images/<split> and masks/<split>.")
    root = Path(source).absolute()
    images, masks = _layout(root)
    problems: list[str] = []
    samples: list[Sample] = []
    for split in _splits(images, masks):
        samples += _samples(split, images / split, masks / split, problems)
    if problems:
        raise DataError(f"{root} has {len(problems)} files or folders that do not fit:{listing(problems)}")
    named = root / CLASSES
    return Found(tuple(samples), Classes.named(read_names(named)) if named.exists() else None)


def _layout(root: Path) -> tuple[Path, Path]:
    if root.exists() and not root.is_dir():
        raise DataError(f"source folder {root} is a file; expected a folder with images/ and masks/.")
    if not root.is_dir():
        raise DataError(f"source folder {root} does not exist; expected one with images/ and masks/.")
    for images, masks in LAYOUTS:
        if (root / images).is_dir() and (root / masks).is_dir():
            return root / images, root / masks
    expected = " or ".join(f"{images}/ and {masks}/" for images, masks in LAYOUTS)
    present = ", ".join(sorted(path.name for path in root.iterdir())) or "nothing"
    raise DataError(f"source folder {root} holds {present[:200]}; expected {expected}, with a folder a split.")


def _splits(images: Path, masks: Path) -> list[str]:
    names = {path.name for side in (images, masks) for path in side.iterdir() if path.is_dir()}
    names = {name for name in names if not name.startswith(".")}
    if not names:
        raise DataError(f"{images} has no split; expected folders such as {images / 'train'}.")
    # The usual three first and in this order, others by name.
    return [name for name in _FIRST_SPLITS if name in names] + sorted(names - set(_FIRST_SPLITS))


def _samples(split: str, images: Path, masks: Path, problems: list[str]) -> list[Sample]:
    image_of = _by_stem(images, IMAGE_SUFFIXES, "an image", problems)
    mask_of = _by_stem(masks, MASK_SUFFIXES, "a mask (lossless)", problems)
    if images.is_dir() and not image_of:
        problems.append(f"{images}: empty split, no image; add images or remove the folder")
    for stem in sorted(image_of.keys() - mask_of.keys()):
        problems.append(f"{image_of[stem]}: image without a mask; expected {masks / stem}.png")
    for stem in sorted(mask_of.keys() - image_of.keys()):
        problems.append(f"{mask_of[stem]}: mask without an image; expected {images / stem}.jpg or .png")
    return [_sample(split, stem, image_of[stem], mask_of[stem]) for stem in sorted(image_of.keys() & mask_of.keys())]


def _by_stem(folder: Path, suffixes: tuple[str, ...], what: str, problems: list[str]) -> dict[str, Path]:
    if not folder.is_dir():
        problems.append(f"{folder}: folder is missing; expected the split's files there")
        return {}
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if not path.exists():
            problems.append(f"{path}: a link to nothing; expected a file")
        elif not _is_text(path.name):
            problems.append(f"{folder}/{path.name!a}: a name that is no UTF-8; rename it")
        elif path.is_dir() or path.suffix.lower() not in suffixes:
            problems.append(f"{path}: not {what}; expected only files ending in {' '.join(suffixes)}")
        elif path.stem in found:
            problems.append(f"{path}: {found[path.stem].name} has the same stem; expected one file a stem")
        else:
            found[path.stem] = path
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sample(split: str, stem: str, image: Path, mask: Path) -> Sample:
    size_bytes = image.stat().st_size + mask.stat().st_size
    read_image, read_mask = partial(_read, str(image)), partial(_read, str(mask))
    return Sample(split, f"{split}/{stem}", str(image), str(mask), size_bytes, read_image, read_mask)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected an image file.") from error
