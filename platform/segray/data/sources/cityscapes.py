"""Cityscapes in its published layout: `leftImg8bit/<split>/<city>/*` and `gtFine/<split>/<city>/*`.

The 19 evaluated classes and their colours come from cityscapesScripts (MIT licence).
"""

from pathlib import Path

from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.data.sources.collector import SampleCollector
from segray.data.sources.files import glob_files, match_stems, require_path, require_source_dir, sort_splits
from segray.data.sources.sample import SourceListing

CLASSES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
"""Id in labelIds and colour of each class, by name."""
LABEL_IDS = range(34)
IGNORED_IDS = 255
LAYOUT = "leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/"
IMAGE_SUFFIX = "_leftImg8bit"
MASK_SUFFIXES = ("_gtFine_labelIds", "_gtFine_labelTrainIds")
DUMMY = "test"  # the published masks of this split contain no labels
UNLABELLED = {DUMMY, "train_extra", "demoVideo"}


def list_samples(source: str | None) -> SourceListing:
    """Lists the pairs of the splits in gtFine, with labelIds masks if they exist, otherwise labelTrainIds.

    Raises:
        DataError: the folder does not exist, or an image has no mask; all such files are listed.
    """
    root = require_source_dir("cityscapes", source, LAYOUT)
    images, masks = (require_path(root / name, LAYOUT) for name in ("leftImg8bit", "gtFine"))
    suffix = _mask_suffix(masks)
    collector = SampleCollector(root)
    for folder in sorted(path for path in images.iterdir() if path.is_dir() and path.name not in UNLABELLED):
        if not (masks / folder.name).is_dir():
            collector.problems.append(f"{folder}: split without masks; expected {masks / folder.name}")
    for split in sort_splits(path.name for path in masks.iterdir() if path.is_dir() and path.name != DUMMY):
        image_of = _by_frame(images / split, IMAGE_SUFFIX)
        mask_of = _by_frame(masks / split, suffix)
        for frame in match_stems(image_of, mask_of, (images / split, masks / split), collector.problems, suffix):
            city = {"city": image_of[frame].parent.name}
            collector.add(split, frame, image_of[frame], mask_of[frame], columns=city)
    classes = Classes(names=tuple(CLASSES), palette=tuple(colour for _, colour in CLASSES.values()))
    return collector.listing(classes, _lookup(suffix), absent_ok=True)


def _by_frame(folder: Path, suffix: str) -> dict[str, Path]:
    """Returns the files of all cities of a split by `city/frame`."""
    paths = glob_files(folder, f"*/*{suffix}.png")
    return {f"{path.parent.name}/{path.stem.removesuffix(suffix)}": path for path in paths}


def _mask_suffix(masks: Path) -> str:
    for suffix in MASK_SUFFIXES:
        if glob_files(masks, f"*/*/*{suffix}.png"):
            return suffix
    raise DataError(f"{masks} contains neither <city>/*{MASK_SUFFIXES[0]}.png nor <city>/*{MASK_SUFFIXES[1]}.png.")


def _lookup(suffix: str) -> dict[int, int | None]:
    """Returns the train id of each mask id, or `None` for ids that are not evaluated."""
    if suffix == MASK_SUFFIXES[1]:
        return {train: train for train in range(len(CLASSES))} | {IGNORED_IDS: None}
    ignored: dict[int, int | None] = dict.fromkeys(LABEL_IDS)
    return ignored | {label: train for train, (label, _) in enumerate(CLASSES.values())}
