"""CamVid in two layouts: the SegNet tutorial with 11 classes and three splits, or the published one with 32 colours."""

from pathlib import Path

from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.data.sources.collector import MaskReader, SampleCollector
from segray.data.sources.files import USUAL_SPLITS, by_stem, describe_dir, match_stems, read_lines, require_source_dir
from segray.data.sources.palette import list_coloured, read_palette
from segray.data.sources.sample import UNSPLIT, SourceListing

TUTORIAL = "train.txt, train/ and trainannot/, the same of val and test"
PUBLISHED = "701_StillsRaw_full/, LabeledApproved_full/ and label_colors.txt"
LAYOUT = f"{TUTORIAL}; or {PUBLISHED}"
NAMES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
PALETTE = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
UNLABELLED = len(NAMES)
STILLS, LABELS, COLOURS = "701_StillsRaw_full", "LabeledApproved_full", "label_colors.txt"
MASK_SUFFIX = "_L"
VOID = "Void"


def list_samples(source: str | None) -> SourceListing:
    """Lists the pairs of whichever layout the folder has.

    Raises:
        DataError: the folder has neither layout, or files are missing; all such files are listed.
    """
    root = require_source_dir("camvid", source, LAYOUT)
    if (root / "train.txt").exists():
        return _tutorial(root)
    if (root / LABELS).is_dir() and (root / STILLS).is_dir():
        palette = read_palette(root, root / COLOURS)
        return list_coloured(root / COLOURS, palette, [VOID], lambda mask_reader: _published(root, mask_reader))
    raise DataError(f"source folder {root} contains {describe_dir(root)}; expected {LAYOUT}.")


def _tutorial(root: Path) -> SourceListing:
    """Lists the pairs of the SegNet tutorial layout.

    The lists contain lines such as `/SegNet/CamVid/train/X.png /SegNet/CamVid/trainannot/X.png`; only the file names
    are used.
    """
    collector = SampleCollector(root)
    for split in USUAL_SPLITS:
        for line in read_lines(root / f"{split}.txt", root) if (root / f"{split}.txt").exists() else []:
            image, _, mask = line.partition(" ")
            files = root / split / Path(image).name, root / f"{split}annot" / Path(mask or image).name
            collector.add(split, Path(image).stem, *files)
    lookup: dict[int, int | None] = {index: index for index in range(len(NAMES))} | {UNLABELLED: None}
    return collector.listing(Classes(names=NAMES, palette=PALETTE), lookup, absent_ok=True)


def _published(root: Path, mask_reader: MaskReader) -> SampleCollector:
    collector = SampleCollector(root, mask_reader)
    images = by_stem(root / STILLS, (".png",), "a still", collector.problems)
    labels = by_stem(root / LABELS, (".png",), "a mask", collector.problems)
    masks = {stem.removesuffix(MASK_SUFFIX): path for stem, path in labels.items()}
    for stem in match_stems(images, masks, (root / STILLS, root / LABELS), collector.problems, MASK_SUFFIX):
        collector.add(UNSPLIT, stem, images[stem], masks[stem])
    return collector
