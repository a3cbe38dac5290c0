"""Sources of `predict --source`: an image, a folder or bucket of images, a video, parquet or a prepared dataset."""

from pathlib import PurePosixPath

from pyarrow.fs import FileType

from segray.core.errors import DataError
from segray.data.manifest import MANIFEST, Manifest, Split, read_manifest
from segray.data.normalize import IMAGE_SUFFIXES
from segray.data.storage import credentials_hint, filesystem, strip_credentials
from segray.inference.batch.images import ImageFile, ImageFiles, list_files, require_encodable, result_names
from segray.inference.batch.inputs import CHUNK_IMAGES, Inputs
from segray.inference.batch.parquet import list_row_groups
from segray.inference.batch.video import open_video

PARQUET = ".parquet"
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def open_inputs(source: str, split: str | None = None) -> Inputs:
    """Returns the inputs of a source.

    Args:
        source: absolute path or URI.
        split: split of a prepared dataset; defaults to all splits.

    Raises:
        DataError: the source does not exist or contains no images.
    """
    fs, path = filesystem(source)
    require_encodable([source])
    try:
        info = fs.get_file_info(path)
        if info.type == FileType.NotFound:
            raise DataError(
                f"source {strip_credentials(source)} does not exist; expected an image, a folder, a video or parquet."
            )
        if info.type == FileType.Directory:
            return _folder(source, split)
        if info.type != FileType.File:  # reading a pipe or a device may never end
            raise DataError(f"source {strip_credentials(source)} is not a regular file; expected a file or a folder.")
    except OSError as error:
        raise DataError(
            f"source {strip_credentials(source)} cannot be read ({error}){credentials_hint(source)}"
        ) from error
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == PARQUET:
        return Inputs(strip_credentials(source), list_row_groups(source, [info]), are_normalized=False)
    if suffix in VIDEO_SUFFIXES:
        return Inputs(strip_credentials(source), [open_video(source, info)], are_normalized=True)
    file = ImageFile(PurePosixPath(path).stem, info)
    return Inputs(strip_credentials(source), [ImageFiles(source, (file,))], are_normalized=False, is_single=True)


def _folder(source: str, split: str | None) -> Inputs:
    fs, root = filesystem(source)
    infos = sorted(list_files(fs, root), key=lambda info: info.path)
    if any(info.path == f"{root}/{MANIFEST}" for info in infos):
        return _dataset(source, read_manifest(source), split)
    if split is not None:
        raise DataError(f"--split is {split}, but {strip_credentials(source)} is not a prepared dataset; omit --split.")
    types = (FileType.File, FileType.NotFound)  # a broken link is a problem of its image; pipes and devices are ignored
    files = [info for info in infos if info.type in types and not _is_hidden(info.path.removeprefix(root))]
    images = [info for info in files if PurePosixPath(info.path).suffix.lower() in IMAGE_SUFFIXES]
    parquet = [info for info in files if info.path.endswith(PARQUET)]
    if images and parquet:
        raise DataError(
            f"{strip_credentials(source)} contains both images and parquet files; pass one of them as --source."
        )
    if parquet:
        return Inputs(
            strip_credentials(source),
            list_row_groups(source, parquet),
            are_normalized=False,
            num_skipped=len(files) - len(parquet),
        )
    if not images:
        raise DataError(
            f"{strip_credentials(source)} contains no images; expected files that end in {' '.join(IMAGE_SUFFIXES)}."
        )
    names = result_names([info.path.removeprefix(f"{root}/") for info in images])
    image_files = [ImageFile(name, info) for name, info in zip(names, images, strict=True)]
    shards = [
        ImageFiles(source, tuple(image_files[first : first + CHUNK_IMAGES]))
        for first in range(0, len(image_files), CHUNK_IMAGES)
    ]
    return Inputs(strip_credentials(source), shards, are_normalized=False, num_skipped=len(files) - len(images))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _dataset(source: str, manifest: Manifest, split_name: str | None) -> Inputs:
    splits: list[Split] = list(manifest.splits.values()) if split_name is None else [manifest.split(split_name)]
    fs, root = filesystem(source)
    paths = [f"{root}/{shard.path}" for split in splits for shard in split.shards]
    shards = list_row_groups(source, fs.get_file_info(paths))
    return Inputs(strip_credentials(source), shards, are_normalized=True)
