"""What `predict --source` may be: an image, a folder or bucket of images, a video, parquet, a prepared dataset."""

from pathlib import PurePosixPath

from pyarrow.fs import FileType

from segray.data.originals import IMAGE_SUFFIXES
from segray.data.schema import MANIFEST, Manifest, Split, advice, filesystem, plain, read_manifest
from segray.errors import DataError
from segray.predictions.images import File, Files, check_text, listed, named
from segray.predictions.inputs import PART_IMAGES, Inputs
from segray.predictions.tables import tables
from segray.predictions.video import video

PARQUET = ".parquet"
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def find(source: str, split: str | None = None) -> Inputs:
    """Returns what a source holds.

    Args:
        source: an absolute path or URI.
        split: of a prepared dataset; none takes all.

    Raises:
        DataError: there is no such source, or nothing in it to be segmented.
    """
    fs, path = filesystem(source)
    check_text([source])
    try:
        info = fs.get_file_info(path)
        if info.type == FileType.NotFound:
            raise DataError(f"source {plain(source)} does not exist; expected an image, a folder, a video or parquet.")
        if info.type == FileType.Directory:
            return _folder(source, split)
    except OSError as error:
        raise DataError(f"source {plain(source)} cannot be looked into ({error}){advice(source)}") from error
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == PARQUET:
        return Inputs(plain(source), tables(source, [info]), are_upright=False)
    if suffix in VIDEO_SUFFIXES:
        return Inputs(plain(source), [video(source, info)], are_upright=True)
    file = File(PurePosixPath(path).stem, info)
    return Inputs(plain(source), [Files(source, (file,))], are_upright=False, is_single=True)


def _folder(source: str, split: str | None) -> Inputs:
    fs, root = filesystem(source)
    infos = sorted(listed(fs, root), key=lambda info: info.path)
    if any(info.path == f"{root}/{MANIFEST}" for info in infos):
        return _dataset(source, read_manifest(source), split)
    if split is not None:
        raise DataError(f"--split is {split}, but {plain(source)} is no prepared dataset; leave the flag out.")
    files = [info for info in infos if info.type != FileType.Directory and not _is_hidden(info.path.removeprefix(root))]
    images = [info for info in files if PurePosixPath(info.path).suffix.lower() in IMAGE_SUFFIXES]
    parquet = [info for info in files if info.path.endswith(PARQUET)]
    if images and parquet:
        raise DataError(f"{plain(source)} holds images and parquet; give one of them as --source.")
    if parquet:
        return Inputs(plain(source), tables(source, parquet), are_upright=False, left_out=len(files) - len(parquet))
    if not images:
        raise DataError(f"{plain(source)} holds no image; expected files ending in {' '.join(IMAGE_SUFFIXES)}.")
    names = named([info.path.removeprefix(f"{root}/") for info in images])
    chosen = [File(name, info) for name, info in zip(names, images, strict=True)]
    units = [Files(source, tuple(chosen[at : at + PART_IMAGES])) for at in range(0, len(chosen), PART_IMAGES)]
    return Inputs(plain(source), units, are_upright=False, left_out=len(files) - len(images))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _dataset(source: str, manifest: Manifest, split: str | None) -> Inputs:
    splits: list[Split] = [manifest.split(split)] if split is not None else list(manifest.splits.values())
    fs, root = filesystem(source)
    paths = [f"{root}/{shard.path}" for part in splits for shard in part.shards]
    units = tables(source, fs.get_file_info(paths))
    return Inputs(plain(source), units, are_upright=True)
